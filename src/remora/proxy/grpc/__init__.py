"""The gRPC front door. Imported only in the proxies of an instance that serves gRPC."""
