"""The wire contract: what goes over gRPC, as .proto files and the Python made of them.

`inference.proto` is the Open Inference Protocol in Triton's dialect, `penstock.proto` what Penstock adds. The modules
`inference_pb2`, `inference_pb2_grpc`, `penstock_pb2` and `penstock_pb2_grpc` are generated beside them by setup.py at
build time, with type stubs, and are not kept in the repository.
"""
