"""From what users write to what the controller takes: graphs, code, policies, routers."""
