// The calls of cusparselt.cc for the host: no stream, scratch memory from the heap.

#include "cuda_runtime_api.h"
#include "xla/ffi/api/ffi.h"

#include <memory>
#include <vector>

namespace xla::ffi {

struct HostScratch {
  std::optional<void*> Allocate(size_t size, size_t = 1) {
    blocks.push_back(std::make_unique<char[]>(size));
    return blocks.back().get();
  }
  std::vector<std::unique_ptr<char[]>> blocks;
};

template <>
struct CtxDecoding<HostScratch> {
  using Type = HostScratch;
  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*,
                                    DiagnosticEngine&) {
    return HostScratch();
  }
};

template <>
struct CtxDecoding<PlatformStream<cudaStream_t>> {
  using Type = cudaStream_t;
  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*,
                                    DiagnosticEngine&) {
    return Type();
  }
};

}  // namespace xla::ffi

#define ScratchAllocator HostScratch
#include "cusparselt.cc"
