// libcuda.so.1 of a machine whose GPU is the simulator.
//
// Work is queued and runs at the next synchronisation, as late as a GPU may run it: data that is read
// or freed too early shows. Fresh device memory is filled with ones, which are NaN, and lies between
// pages that must not be touched.
//
//   CUDA_SIMULATOR_SM        compute capability times ten: 80 unless given
//   CUDA_SIMULATOR_SCHEDULE  1, 2 or 3, see simulator.cpp
#include "../../Sources/CAttentionKernels/include/cuda_loader.h"
#include "simulator.h"

#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

enum {
  success = 0,
  invalid_value = 1,
  out_of_memory = 2,
  invalid_image = 200,
  invalid_context = 201,
  not_found = 500
};

// Modules, functions and streams belong to the context that was current when they were made.
struct CUctx_st {};
struct CUmod_st {
  void* library;
  CUcontext context;
};
struct CUfunc_st {
  void (*entry)(const void*);
  unsigned parameter_bytes, threads;
  CUcontext context;
};
struct CUstream_st {
  CUcontext context;
};
struct CUevent_st {
  double milliseconds = 0;
};
struct SimulatedTensorMap {
  const u8* base;
  u64 width, height, pitch;
  u32 box_width, box_height;
};

static CUctx_st primary;
static bool is_primary_active;
static thread_local std::vector<CUcontext> contexts;
static CUcontext current() { return contexts.empty() ? nullptr : contexts.back(); }

static std::recursive_mutex lock;
static std::deque<simulator::Job> queue;
struct Allocation {
  void* pages;
  size_t page_bytes;
};
static std::map<CUdeviceptr, Allocation> allocations;

static void run_queue() {
  while (!queue.empty()) {
    const simulator::Job job = std::move(queue.front());
    queue.pop_front();
    job();
  }
}
static CUresult enqueue(CUstream stream, simulator::Job job) {
  // The default stream is that of the current context.
  if (!current() || (stream && stream->context != current())) return invalid_context;
  const std::lock_guard<std::recursive_mutex> guard(lock);
  queue.push_back(std::move(job));
  return success;
}
static CUresult synchronize() {
  const std::lock_guard<std::recursive_mutex> guard(lock);
  run_queue();
  return success;
}
static int compute_capability() {
  const char* const chosen = getenv("CUDA_SIMULATOR_SM");
  return chosen ? atoi(chosen) : 80;
}

extern "C" {

CUresult cuInit(unsigned) { return success; }
CUresult cuDriverGetVersion(int* version) {
  *version = 12040;
  return success;
}
CUresult cuGetErrorString(CUresult code, const char** text) {
  *text = code == out_of_memory    ? "out of memory"
          : code == invalid_image  ? "device kernel image is invalid"
          : code == not_found      ? "named symbol not found"
          : code == invalid_value  ? "invalid argument"
          : code == invalid_context ? "invalid device context"
                                   : "unknown error";
  return success;
}
CUresult cuDeviceGetCount(int* count) {
  *count = 1;
  return success;
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? success : invalid_value;
}
CUresult cuDeviceGetName(char* name, int capacity, CUdevice) {
  snprintf(name, capacity, "CUDA simulator");
  return success;
}
CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice) {
  switch (attribute) {
    case 16: *value = 8; return success;                          // multiprocessors
    case 75: *value = compute_capability() / 10; return success;  // major
    case 76: *value = compute_capability() % 10; return success;  // minor
    case 97: *value = 227 * 1024; return success;                 // shared memory of a block
    default: return invalid_value;
  }
}
CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
  *bytes = (size_t)4 << 30;
  return success;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  is_primary_active = true;
  *context = &primary;
  return success;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = is_primary_active;
  return success;
}
CUresult cuCtxCreate_v2(CUcontext* context, unsigned, CUdevice) {
  contexts.push_back(*context = new CUctx_st);
  return success;
}
CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = current();
  return success;
}
CUresult cuCtxGetDevice(CUdevice* device) {
  *device = 0;
  return current() ? success : invalid_context;
}
CUresult cuCtxPushCurrent_v2(CUcontext context) {
  if (!context) return invalid_context;
  contexts.push_back(context);
  return success;
}
CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  if (!current()) return invalid_context;
  *context = current();
  contexts.pop_back();
  return success;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  if (!current()) return invalid_context;
  const Elf64_Ehdr* const header = (const Elf64_Ehdr*)image;
  if (memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) return invalid_image;
  const size_t bytes = header->e_shoff + (size_t)header->e_shentsize * header->e_shnum;
  const int file = memfd_create("kernel", 0);
  if (write(file, image, bytes) != (ssize_t)bytes) return invalid_image;
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    close(file);
    return invalid_image;
  }
  // The descriptor stays open: the loader tells libraries apart by their paths.
  *module = new CUmod_st{library, current()};
  return success;
}
CUresult cuModuleUnload(CUmodule module) {
  synchronize();
  delete module;
  return success;
}
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  const std::string bytes = std::string(name) + "_parameter_bytes";
  const std::string threads = std::string(name) + "_threads";
  void* const entry = dlsym(module->library, name);
  if (!entry) return not_found;
  *function = new CUfunc_st{(void (*)(const void*))entry,
                            *(const unsigned*)dlsym(module->library, bytes.c_str()),
                            *(const unsigned*)dlsym(module->library, threads.c_str()), module->context};
  return success;
}
CUresult cuFuncSetAttribute(CUfunction, int, int) { return success; }
CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned shared_bytes, CUstream stream,
                        void** parameters, void**) {
  if (f->context != current()) return invalid_context;
  if (bx != f->threads || by != 1 || bz != 1 || gx == 0 || gy == 0 || gz == 0 || gy > 65535 ||
      gz > 65535 || shared_bytes > 227 * 1024) {
    return invalid_value;
  }
  const std::vector<u8> copy((const u8*)parameters[0], (const u8*)parameters[0] + f->parameter_bytes);
  return enqueue(stream, [=] {
    std::vector<u8> memory(copy.size() + 64);
    u8* const aligned = (u8*)(((uintptr_t)memory.data() + 63) & ~(uintptr_t)63);
    memcpy(aligned, copy.data(), copy.size());
    simulator::launch({gx, gy, gz}, (int)bx, shared_bytes, [=] { f->entry(aligned); });
  });
}

CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
  const std::lock_guard<std::recursive_mutex> guard(lock);
  if (!current()) return invalid_context;
  if (bytes == 0) return invalid_value;
  if (bytes > (size_t)4 << 30) return out_of_memory;
  const size_t page = 4096, used = (bytes + 255) & ~(size_t)255;
  const size_t total = (used + page - 1) / page * page + 2 * page;
  u8* const pages =
      (u8*)mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return out_of_memory;
  mprotect(pages, page, PROT_NONE);
  mprotect(pages + total - page, page, PROT_NONE);
  u8* const start = pages + total - page - used;
  memset(start, 0xFF, used);
  *address = (CUdeviceptr)start;
  allocations[*address] = {pages, total};
  return success;
}
CUresult cuMemFree_v2(CUdeviceptr address) {
  const std::lock_guard<std::recursive_mutex> guard(lock);
  run_queue();
  const auto found = allocations.find(address);
  if (found == allocations.end()) return invalid_value;
  munmap(found->second.pages, found->second.page_bytes);
  allocations.erase(found);
  return success;
}
CUresult cuPointerGetAttribute(void* result, int attribute, CUdeviceptr address) {
  const std::lock_guard<std::recursive_mutex> guard(lock);
  const auto next = allocations.upper_bound(address);
  if (next == allocations.begin()) return invalid_value;
  const Allocation& found = std::prev(next)->second;
  if (address >= (CUdeviceptr)found.pages + found.page_bytes) return invalid_value;
  if (attribute != 9) return invalid_value;  // the number of the device
  *(int*)result = 0;
  return success;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void* source, size_t bytes, CUstream stream) {
  return enqueue(stream, [=] { memcpy((void*)target, source, bytes); });
}
CUresult cuMemcpyDtoHAsync_v2(void* target, CUdeviceptr source, size_t bytes, CUstream stream) {
  return enqueue(stream, [=] { memcpy(target, (const void*)source, bytes); });
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr target, const void* source, size_t bytes) {
  synchronize();
  memcpy((void*)target, source, bytes);
  return success;
}
CUresult cuMemcpyDtoH_v2(void* target, CUdeviceptr source, size_t bytes) {
  // The default stream does not wait for a stream that is independent of it.
  memcpy(target, (const void*)source, bytes);
  return success;
}
CUresult cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t bytes, CUstream stream) {
  return enqueue(stream, [=] { memset((void*)target, value, bytes); });
}

CUresult cuStreamCreate(CUstream* stream, unsigned) {
  if (!current()) return invalid_context;
  *stream = new CUstream_st{current()};
  return success;
}
CUresult cuStreamDestroy_v2(CUstream stream) {
  synchronize();
  delete stream;
  return success;
}
CUresult cuStreamSynchronize(CUstream) { return synchronize(); }
CUresult cuEventCreate(CUevent* event, unsigned) {
  *event = new CUevent_st;
  return success;
}
CUresult cuEventDestroy_v2(CUevent event) {
  synchronize();
  delete event;
  return success;
}
CUresult cuEventRecord(CUevent event, CUstream stream) {
  return enqueue(stream, [=] {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    event->milliseconds = std::chrono::duration<double, std::milli>(now).count();
  });
}
CUresult cuEventSynchronize(CUevent) { return synchronize(); }
CUresult cuEventElapsedTime(float* milliseconds, CUevent begin, CUevent end) {
  *milliseconds = (float)(end->milliseconds - begin->milliseconds);
  return success;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, int data_type, uint32_t rank, void* base,
                                const uint64_t* sizes, const uint64_t* strides, const uint32_t* box,
                                const uint32_t* steps, int interleave, int swizzle, int, int) {
  // Bytes, two dimensions, rows of the box as long as the swizzle's span; the driver's own rules.
  const bool spans = (swizzle == 3 && box[0] == 128) || (swizzle == 2 && box[0] == 64);
  if (data_type != 0 || rank != 2 || interleave != 0 || !spans || box[1] > 256 || steps[0] != 1 ||
      ((uintptr_t)base | strides[0]) % 16 != 0) {
    return invalid_value;
  }
  const SimulatedTensorMap m = {(const u8*)base, sizes[0], sizes[1], strides[0], box[0], box[1]};
  static_assert(sizeof m <= sizeof *map, "fits");
  memcpy(map, &m, sizeof m);
  return success;
}

}  // extern "C"
