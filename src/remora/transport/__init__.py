"""Both ends of a connection that speaks the wire protocol, on asyncio."""
