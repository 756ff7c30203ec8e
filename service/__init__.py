"""The service: an HTTP front end that writes experiments down, hands them to Ray and tells their story."""
