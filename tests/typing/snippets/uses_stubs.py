"""What checkers know of an application by the module that `remora stubs` wrote."""

import server_handles
from server import Point
from typing_extensions import assert_type

model = server_handles.My_ModelHandle()
assert_type(model.predict.remote(Point(1), "good", k=2).result(), list[Point])
assert_type(next(model.tokens.options(timeout_s=1).remote("x")), bytes)
assert_type(model.remote(1.5).result(), str)
assert_type(model.fixed.remote(x=1).result(), int)
assert_type(server_handles.FrontHandle("other").remote(object()).result(), str)
model.apply.remote(str, 1, 2, a={"b": (1, 2)})
model.predict.remote(point=Point(1))  # error
model.predict.remote(Point(1), "slow")  # error
model.predict.remote(1)  # error
model.tokens.remote()  # error
model.predikt.remote()  # error
