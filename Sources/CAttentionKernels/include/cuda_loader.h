// The parts of the CUDA driver and of NVRTC that we call, found at run time.
//
// Nothing of CUDA is needed to build or to start: types are declared here. Each X line gives a field
// of the table and its look-up, so the two cannot drift apart. Names that end in _v2 are the current
// form of those functions.
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct _nvrtcProgram *nvrtcProgram;
typedef int nvrtcResult;
typedef struct {
  uint64_t words[16];  // 64-byte aligned where the driver writes it
} CUtensorMap;

// X(result, name, exported symbol, arguments...)
#define INTFA_CUDA_DRIVER(X)                                                                    \
  X(CUresult, cuInit, "cuInit", unsigned)                                                       \
  X(CUresult, cuDriverGetVersion, "cuDriverGetVersion", int *)                                  \
  X(CUresult, cuGetErrorString, "cuGetErrorString", CUresult, const char **)                    \
  X(CUresult, cuDeviceGetCount, "cuDeviceGetCount", int *)                                      \
  X(CUresult, cuDeviceGet, "cuDeviceGet", CUdevice *, int)                                      \
  X(CUresult, cuDeviceGetName, "cuDeviceGetName", char *, int, CUdevice)                        \
  X(CUresult, cuDeviceGetAttribute, "cuDeviceGetAttribute", int *, int, CUdevice)               \
  X(CUresult, cuDeviceTotalMem, "cuDeviceTotalMem_v2", size_t *, CUdevice)                      \
  X(CUresult, cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", CUcontext *, CUdevice)      \
  X(CUresult, cuDevicePrimaryCtxGetState, "cuDevicePrimaryCtxGetState", CUdevice, unsigned *,   \
    int *)                                                                                      \
  X(CUresult, cuCtxGetCurrent, "cuCtxGetCurrent", CUcontext *)                                  \
  X(CUresult, cuCtxGetDevice, "cuCtxGetDevice", CUdevice *)                                     \
  X(CUresult, cuCtxPushCurrent, "cuCtxPushCurrent_v2", CUcontext)                               \
  X(CUresult, cuCtxPopCurrent, "cuCtxPopCurrent_v2", CUcontext *)                               \
  X(CUresult, cuModuleLoadData, "cuModuleLoadData", CUmodule *, const void *)                   \
  X(CUresult, cuModuleGetFunction, "cuModuleGetFunction", CUfunction *, CUmodule, const char *) \
  X(CUresult, cuFuncSetAttribute, "cuFuncSetAttribute", CUfunction, int, int)                   \
  X(CUresult, cuLaunchKernel, "cuLaunchKernel", CUfunction, unsigned, unsigned, unsigned,       \
    unsigned, unsigned, unsigned, unsigned, CUstream, void **, void **)                         \
  X(CUresult, cuMemAlloc, "cuMemAlloc_v2", CUdeviceptr *, size_t)                               \
  X(CUresult, cuMemFree, "cuMemFree_v2", CUdeviceptr)                                           \
  X(CUresult, cuPointerGetAttribute, "cuPointerGetAttribute", void *, int, CUdeviceptr)         \
  X(CUresult, cuMemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2", CUdeviceptr, const void *, size_t,     \
    CUstream)                                                                                   \
  X(CUresult, cuMemcpyDtoHAsync, "cuMemcpyDtoHAsync_v2", void *, CUdeviceptr, size_t, CUstream) \
  X(CUresult, cuMemsetD8Async, "cuMemsetD8Async", CUdeviceptr, unsigned char, size_t, CUstream) \
  X(CUresult, cuStreamCreate, "cuStreamCreate", CUstream *, unsigned)                           \
  X(CUresult, cuStreamDestroy, "cuStreamDestroy_v2", CUstream)                                  \
  X(CUresult, cuStreamSynchronize, "cuStreamSynchronize", CUstream)                             \
  X(CUresult, cuEventCreate, "cuEventCreate", CUevent *, unsigned)                              \
  X(CUresult, cuEventDestroy, "cuEventDestroy_v2", CUevent)                                     \
  X(CUresult, cuEventRecord, "cuEventRecord", CUevent, CUstream)                                \
  X(CUresult, cuEventSynchronize, "cuEventSynchronize", CUevent)                                \
  X(CUresult, cuEventElapsedTime, "cuEventElapsedTime", float *, CUevent, CUevent)

// Drivers of CUDA 12 and later; needed on sm_90 only.
#define INTFA_CUDA_DRIVER_OPTIONAL(X)                                                           \
  X(CUresult, cuTensorMapEncodeTiled, "cuTensorMapEncodeTiled", CUtensorMap *, int, uint32_t,   \
    void *, const uint64_t *, const uint64_t *, const uint32_t *, const uint32_t *, int, int,   \
    int, int)

#define INTFA_NVRTC(X)                                                                          \
  X(nvrtcResult, nvrtcVersion, "nvrtcVersion", int *, int *)                                    \
  X(const char *, nvrtcGetErrorString, "nvrtcGetErrorString", nvrtcResult)                      \
  X(nvrtcResult, nvrtcGetNumSupportedArchs, "nvrtcGetNumSupportedArchs", int *)                 \
  X(nvrtcResult, nvrtcGetSupportedArchs, "nvrtcGetSupportedArchs", int *)                       \
  X(nvrtcResult, nvrtcCreateProgram, "nvrtcCreateProgram", nvrtcProgram *, const char *,        \
    const char *, int, const char *const *, const char *const *)                                \
  X(nvrtcResult, nvrtcDestroyProgram, "nvrtcDestroyProgram", nvrtcProgram *)                    \
  X(nvrtcResult, nvrtcCompileProgram, "nvrtcCompileProgram", nvrtcProgram, int,                 \
    const char *const *)                                                                        \
  X(nvrtcResult, nvrtcGetProgramLogSize, "nvrtcGetProgramLogSize", nvrtcProgram, size_t *)      \
  X(nvrtcResult, nvrtcGetProgramLog, "nvrtcGetProgramLog", nvrtcProgram, char *)                \
  X(nvrtcResult, nvrtcGetCUBINSize, "nvrtcGetCUBINSize", nvrtcProgram, size_t *)                \
  X(nvrtcResult, nvrtcGetCUBIN, "nvrtcGetCUBIN", nvrtcProgram, char *)                          \
  X(nvrtcResult, nvrtcGetPTXSize, "nvrtcGetPTXSize", nvrtcProgram, size_t *)                    \
  X(nvrtcResult, nvrtcGetPTX, "nvrtcGetPTX", nvrtcProgram, char *)

#define INTFA_FIELD(RESULT, NAME, SYMBOL, ...) RESULT (*NAME)(__VA_ARGS__);
typedef struct {
  INTFA_CUDA_DRIVER(INTFA_FIELD)
  INTFA_CUDA_DRIVER_OPTIONAL(INTFA_FIELD)  // NULL where the driver is older
} intfa_cuda_driver;
typedef struct {
  INTFA_NVRTC(INTFA_FIELD)
} intfa_nvrtc;

#ifndef __cplusplus
#pragma GCC visibility push(hidden)

// Looks for libcuda.so.1 where the system's loader does. 0, or a number and what is missing.
int intfa_load_cuda_driver(intfa_cuda_driver *driver, char *message, size_t capacity);

// Looks for libnvrtc.so.13, .12 and libnvrtc.so, first of all in this process.
int intfa_load_nvrtc(intfa_nvrtc *nvrtc, char *message, size_t capacity);

#pragma GCC visibility pop
#endif
