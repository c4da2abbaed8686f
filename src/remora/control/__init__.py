"""The controller: decides, and is never on the path of a request."""
