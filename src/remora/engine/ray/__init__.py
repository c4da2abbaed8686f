"""The engine on Ray Core: controller, proxies and replicas are Ray actors on one node or many."""
