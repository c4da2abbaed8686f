"""Request routers under the names that Ray Serve has them under."""
