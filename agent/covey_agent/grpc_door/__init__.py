"""The Open Inference Protocol over gRPC, in a process of its own that asks the gateway (`covey-agent grpc`, extra `grpc`)."""
