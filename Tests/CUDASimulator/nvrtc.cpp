// libnvrtc.so.12 of a machine whose GPU is the simulator: the host's C++ compiler. A "cubin" is a
// shared object, so that sources, compilation, cache and loading take their ordinary ways.
//
//   CUDA_SIMULATOR_FAULT  FILE|||TEXT|||OTHER: the first TEXT of that file becomes OTHER
#include "../../Sources/CAttentionKernels/include/cuda_loader.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

enum { success = 0, compilation_error = 6 };

struct _nvrtcProgram {
  std::filesystem::path folder;
  std::string log, code;
  bool is_text;  // what a real one gives as PTX
};

static std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The text of a file, with the fault that is asked for.
static std::string with_fault(const std::string& name, std::string text) {
  const char* const chosen = getenv("CUDA_SIMULATOR_FAULT");
  if (!chosen) return text;
  const std::string fault = chosen, bar = "|||";
  const size_t first = fault.find(bar), second = fault.find(bar, first + bar.size());
  if (fault.substr(0, first) != name) return text;
  const std::string from = fault.substr(first + bar.size(), second - first - bar.size());
  const size_t place = text.find(from);
  if (place == std::string::npos) {
    fprintf(stderr, "CUDA simulator: %s has no '%s'\n", name.c_str(), from.c_str());
    _Exit(4);
  }
  return text.replace(place, from.size(), fault.substr(second + bar.size()));
}

extern "C" {

nvrtcResult nvrtcVersion(int* major, int* minor) {
  *major = 0;  // never taken for a real one, also not by a cache of kernels
  *minor = 1;
  return success;
}
const char* nvrtcGetErrorString(nvrtcResult code) {
  return code == success ? "NVRTC_SUCCESS" : "NVRTC_ERROR_COMPILATION";
}
nvrtcResult nvrtcGetNumSupportedArchs(int* count) {
  *count = 2;
  return success;
}
nvrtcResult nvrtcGetSupportedArchs(int* architectures) {
  architectures[0] = 80;
  architectures[1] = 90;
  return success;
}
nvrtcResult nvrtcCreateProgram(nvrtcProgram* program, const char* source, const char*, int count,
                               const char* const* headers, const char* const* names) {
  std::string pattern = (std::filesystem::temp_directory_path() / "cuda-simulator-XXXXXX").string();
  if (!mkdtemp(pattern.data())) return compilation_error;
  *program = new _nvrtcProgram{pattern, "", "", false};
  std::ofstream((*program)->folder / "source.cpp") << source;
  for (int i = 0; i < count; i++) {
    std::ofstream((*program)->folder / names[i]) << with_fault(names[i], headers[i]);
  }
  return success;
}
nvrtcResult nvrtcDestroyProgram(nvrtcProgram* program) {
  std::filesystem::remove_all((*program)->folder);
  delete *program;
  *program = nullptr;
  return success;
}
nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int count, const char* const* options) {
  const std::string name = "--gpu-architecture=";
  std::string architecture;
  for (int i = 0; i < count; i++) {
    const std::string option = options[i];
    if (option.rfind(name, 0) == 0) architecture = option.substr(name.size());
  }
  program->is_text = architecture.rfind("compute_", 0) == 0;
  if (architecture != "sm_80" && architecture != "sm_90a" && !program->is_text) {
    program->log = "invalid value for --gpu-architecture: " + architecture;
    return compilation_error;
  }
  const std::string folder = program->folder.string();
  const std::string command =
      std::string(SIMULATOR_COMPILER) + " -O2 -std=c++17 -w -shared -fPIC -ffp-contract=off" +
      " -DHOST_SIMULATOR -I" + folder + " -I" SIMULATOR_SOURCES " -o " + folder + "/kernel.so " +
      folder + "/source.cpp -L" SIMULATOR_LIBRARIES " -l:libcuda.so.1 -Wl,-rpath," SIMULATOR_LIBRARIES
      " 2> " + folder + "/log";
  const int status = std::system(command.c_str());
  program->log = contents(program->folder / "log");
  program->code = contents(program->folder / "kernel.so");
  return status == 0 && !program->code.empty() ? success : compilation_error;
}
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, size_t* bytes) {
  *bytes = program->log.size() + 1;
  return success;
}
nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char* log) {
  memcpy(log, program->log.c_str(), program->log.size() + 1);
  return success;
}
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t* bytes) {
  *bytes = program->is_text ? 0 : program->code.size();
  return success;
}
nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char* code) {
  if (program->is_text) return compilation_error;
  memcpy(code, program->code.data(), program->code.size());
  return success;
}
nvrtcResult nvrtcGetPTXSize(nvrtcProgram program, size_t* bytes) {
  *bytes = program->code.size();
  return success;
}
nvrtcResult nvrtcGetPTX(nvrtcProgram program, char* code) {
  memcpy(code, program->code.data(), program->code.size());
  return success;
}

}  // extern "C"
