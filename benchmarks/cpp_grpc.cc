// What a user writes by hand in C++: gRPC, protobuf and ONNX Runtime's C API, for one model of one float matrix.
//
// The asynchronous API of grpc++: so many threads, each with a completion queue; a call is run and answered by the thread
// that took it. One thread is best for one caller (p50 a third below two threads, a half below the callback API), one for
// each core for many. No batching, no limits, no metadata: the least that answers ModelInfer. ONNX Runtime is the one of the Python wheel, opened at run
// time; its table of functions only grows, so slots are stable and no header of it is needed.
//
//     cpp_grpc THREADS libonnxruntime.so NAME MODEL.onnx INPUT OUTPUT... READY_FILE
//
// writes {"grpc": "127.0.0.1:PORT"} to the file once it listens, and serves until it is ended by a signal.
#include <dlfcn.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "inference.grpc.pb.h"

using inference::ModelInferRequest;
using inference::ModelInferResponse;

namespace {

constexpr size_t CALLS = 512;  // that a queue takes at once

void *const *slots;  // ONNX Runtime's table

// Calls a function of the table; a status that is not null ends the program, since nothing here may fail.
template <typename... Arguments>
void ort(int slot, Arguments... arguments) {
  if (void *status = reinterpret_cast<void *(*)(Arguments...)>(slots[slot])(arguments...)) {
    std::fprintf(stderr, "ONNX Runtime: %s\n", reinterpret_cast<const char *(*)(void *)>(slots[2])(status));
    std::exit(1);
  }
}

void release(int slot, void *object) { reinterpret_cast<void (*)(void *)>(slots[slot])(object); }

class Model {
 public:
  const std::string name, input;
  const std::vector<std::string> outputs;

  // From the command line: LIBRARY NAME MODEL INPUT OUTPUT... READY_FILE
  Model(char **words, int count) : name(words[1]), input(words[3]), outputs(words + 4, words + count - 1) {
    load(words[0], words[2]);
  }

  // False where the request does not fit.
  bool infer(const ModelInferRequest &request, ModelInferResponse *response) const {
    if (request.inputs_size() != 1 || request.raw_input_contents_size() != 1) return false;
    const auto &tensor = request.inputs(0);
    const std::string &raw = request.raw_input_contents(0);
    if (tensor.name() != input || tensor.datatype() != "FP32" || tensor.shape_size() != 2) return false;
    const int64_t shape[2] = {tensor.shape(0), tensor.shape(1)};
    if (shape[0] < 1 || shape[1] < 1 || shape[0] > 65536 || shape[1] > 65536) return false;
    if (raw.size() != static_cast<size_t>(shape[0] * shape[1]) * sizeof(float)) return false;
    const char *in = input.c_str();
    std::vector<const char *> names;
    for (const auto &output : outputs) names.push_back(output.c_str());
    std::vector<void *> results(outputs.size(), nullptr);
    void *value;
    ort(49, memory_, const_cast<char *>(raw.data()), raw.size(), shape, size_t{2}, 1, &value);  // 1: float
    ort(9, session_, static_cast<void *>(nullptr), &in, &value, size_t{1}, names.data(), names.size(), results.data());
    response->set_model_name(name);
    response->set_model_version("1");
    for (size_t i = 0; i < results.size(); i++) append(outputs[i], results[i], response);
    release(96, value);
    return true;
  }

 private:
  void *session_ = nullptr, *memory_ = nullptr;

  void load(const char *library, const char *path) {
    void *opened = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    auto base = opened ? reinterpret_cast<void *const *(*)()>(dlsym(opened, "OrtGetApiBase")) : nullptr;
    if (!base) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::exit(1);
    }
    slots = reinterpret_cast<void *const *(*)(uint32_t)>(base()[0])(17);
    void *environment, *options;
    ort(3, 3, "cpp_grpc", &environment);  // CreateEnv; 3: errors only
    ort(10, &options);                    // CreateSessionOptions
    ort(24, options, 1);                  // SetIntraOpNumThreads
    ort(7, environment, path, options, &session_);
    ort(69, 0, 0, &memory_);  // CreateCpuMemoryInfo
  }

  static void append(const std::string &name, void *result, ModelInferResponse *response) {
    void *about, *data;
    size_t dimensions, count;
    int type;
    int64_t shape[8];
    ort(65, result, &about);  // GetTensorTypeAndShape
    ort(60, about, &type);
    ort(61, about, &dimensions);
    ort(62, about, shape, dimensions);
    ort(64, about, &count);
    ort(51, result, &data);  // GetTensorMutableData
    auto *output = response->add_outputs();
    output->set_name(name);
    output->set_datatype(type == 1 ? "FP32" : "INT64");
    for (size_t i = 0; i < dimensions; i++) output->add_shape(shape[i]);
    response->add_raw_output_contents(data, count * (type == 1 ? sizeof(float) : sizeof(int64_t)));
    release(99, about);
    release(96, result);
  }
};

using Service = inference::GRPCInferenceService::WithAsyncMethod_ModelInfer<inference::GRPCInferenceService::Service>;

// One call after the other: asked for, answered, asked for again.
class Call {
 public:
  Call(Service &service, grpc::ServerCompletionQueue *queue, const Model &model)
      : service_(service), queue_(queue), model_(model) {
    next();
  }

  // What was asked of the queue has come about, or `ok` is false: there is no call, or its client left.
  void proceed(bool ok) {
    if (waiting_ && ok) {
      waiting_ = false;
      const bool fits = state_->request.model_name() == model_.name && model_.infer(state_->request, &state_->response);
      static const grpc::Status unfit(grpc::INVALID_ARGUMENT, "not a request for this model");
      state_->writer.Finish(state_->response, fits ? grpc::Status::OK : unfit, this);
    } else if (!waiting_) {
      next();
    }
  }

 private:
  struct State {
    grpc::ServerContext context;
    ModelInferRequest request;
    ModelInferResponse response;
    grpc::ServerAsyncResponseWriter<ModelInferResponse> writer{&context};
  };

  Service &service_;
  grpc::ServerCompletionQueue *queue_;
  const Model &model_;
  std::unique_ptr<State> state_;
  bool waiting_ = true;

  void next() {
    waiting_ = true;
    state_ = std::make_unique<State>();
    service_.RequestModelInfer(&state_->context, &state_->request, &state_->writer, queue_, queue_, this);
  }
};

// The life of a thread: what its queue says, for ever.
void serve(Service &service, grpc::ServerCompletionQueue *queue, const Model &model) {
  std::vector<std::unique_ptr<Call>> calls;
  while (calls.size() < CALLS) calls.push_back(std::make_unique<Call>(service, queue, model));
  void *call;
  for (bool ok; queue->Next(&call, &ok);) static_cast<Call *>(call)->proceed(ok);
}

}  // namespace

int main(int count, char **words) {
  if (count < 8) return std::fprintf(stderr, "usage: cpp_grpc THREADS LIBRARY NAME MODEL INPUT OUTPUT... READY_FILE\n"), 2;
  const Model model(words + 2, count - 2);
  Service service;
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  std::vector<std::unique_ptr<grpc::ServerCompletionQueue>> queues;
  for (int i = 0; i < std::max(1, std::atoi(words[1])); i++) queues.push_back(builder.AddCompletionQueue());
  auto server = builder.BuildAndStart();
  if (!server) return 1;
  const std::string ready = words[count - 1], draft = ready + ".new";
  FILE *file = std::fopen(draft.c_str(), "w");
  if (!file) return std::perror(draft.c_str()), 1;
  std::fprintf(file, "{\"grpc\": \"127.0.0.1:%d\"}\n", port);
  if (std::fclose(file) || std::rename(draft.c_str(), ready.c_str())) return std::perror(ready.c_str()), 1;
  std::vector<std::thread> threads;
  for (auto &queue : queues) threads.emplace_back(serve, std::ref(service), queue.get(), std::cref(model));
  for (auto &thread : threads) thread.join();
}
