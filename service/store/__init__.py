"""The database behind `service.ports.Store`: SQLite or PostgreSQL, by one set of statements."""

from service.store.sql_store import SqlStore

__all__ = ["SqlStore"]
