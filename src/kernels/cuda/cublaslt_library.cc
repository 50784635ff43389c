#include "kernels/cuda/cublaslt_library.h"

#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <vector>

namespace onepass {
namespace {

constexpr const char* kFile = "libcublasLt.so.13";

std::vector<std::string> places() {
  std::vector<std::string> paths;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    paths.push_back(program.parent_path() / kFile);
    paths.push_back(program.parent_path().parent_path() / "lib" / kFile);
  }
  paths.emplace_back(kFile);
  paths.push_back(std::string("/usr/local/cuda/lib64/") + kFile);
  return paths;
}

template <typename Function>
Status find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function != nullptr) return ok_status();
  return not_found(kFile, ": expected a function ", name, ", found none");
}

StatusOr<CublasLtLibrary> open() {
  void* library = nullptr;
  std::string tried;
  for (const std::string& path : places()) {
    // An absent file is no news; one that is there and does not open is.
    if (path.front() == '/' && !std::filesystem::exists(path)) {
      tried += str_cat(tried.empty() ? "" : ", ", path);
      continue;
    }
    library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
    tried += str_cat(tried.empty() ? "" : ", ", path, " (", printable(dlerror(), 240), ")");
  }
  if (library == nullptr) return not_found("cuBLASLt: expected ", kFile, ", found none of ", tried);
  CublasLtLibrary lt;
  ONEPASS_RETURN_IF_ERROR(find(library, "cublasLtCreate", lt.create));
  ONEPASS_RETURN_IF_ERROR(find(library, "cublasLtDestroy", lt.destroy));
  ONEPASS_RETURN_IF_ERROR(find(library, "cublasLtGetVersion", lt.version));
  ONEPASS_RETURN_IF_ERROR(find(library, "cublasLtGetStatusString", lt.status_string));
  ONEPASS_RETURN_IF_ERROR(find(library, "cublasLtMatmul", lt.matmul));
  ONEPASS_RETURN_IF_ERROR(find(library, "cublasLtMatmulAlgoGetHeuristic", lt.heuristic));
  ONEPASS_RETURN_IF_ERROR(find(library, "cublasLtMatmulDescInit_internal", lt.init_desc));
  ONEPASS_RETURN_IF_ERROR(find(library, "cublasLtMatmulDescSetAttribute", lt.set_desc));
  ONEPASS_RETURN_IF_ERROR(find(library, "cublasLtMatrixLayoutInit_internal", lt.init_layout));
  ONEPASS_RETURN_IF_ERROR(find(library, "cublasLtMatmulPreferenceInit_internal", lt.init_preference));
  ONEPASS_RETURN_IF_ERROR(find(library, "cublasLtMatmulPreferenceSetAttribute", lt.set_preference));
  return lt;
}

}  // namespace

StatusOr<const CublasLtLibrary*> open_cublaslt() {
  static const StatusOr<CublasLtLibrary> library = open();
  if (!library.ok()) return library.status();
  return &*library;
}

}  // namespace onepass
