"""Call every method of the service: python client.py [HOST:PORT]."""

from __future__ import annotations

import sys

import fish_pb2
import fish_pb2_grpc
import grpc

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000"


def catches(*names: str) -> list[fish_pb2.Catch]:
    return [fish_pb2.Catch(name=name) for name in names]


with grpc.insecure_channel(ADDRESS) as channel:
    harbour = fish_pb2_grpc.HarbourStub(channel)
    report, call = harbour.Land.with_call(fish_pb2.Catch(name="cod"))
    print(report.text, "at quay", dict(call.trailing_metadata())["quay"])
    for report in harbour.Watch(fish_pb2.Catch(name="eel")):
        print(report.text)
    print(harbour.Count(iter(catches("cod", "eel", "ray"))).text)
    for report in harbour.Talk(iter(catches("tuna", "sole"))):
        print(report.text)
    try:
        harbour.Land(fish_pb2.Catch())
    except grpc.RpcError as error:
        print(error.code().name, error.details())
