"""The routes, one module a resource. Each route declares the role it needs and the errors it may give."""
