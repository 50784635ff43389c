// Stands for a libcuda.so.1 of CUDA 12.4: enough of one for the runtime to ask its version.
#include <cstdint>
#include <cstring>

namespace {

constexpr int kFound = 0, kNotFound = 500;  // CUDA_SUCCESS, CUDA_ERROR_NOT_FOUND

int unexpected() { return 999; }  // CUDA_ERROR_UNKNOWN

}  // namespace

// NOLINTBEGIN(readability-identifier-naming): the driver's own names.
extern "C" {

int cuInit(unsigned) { return kFound; }

int cuDriverGetVersion(int* version) {
  *version = 12040;
  return kFound;
}

int cuGetExportTable(const void** table, const void*) {
  *table = nullptr;
  return kNotFound;
}

int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags, int* found);

int cuGetProcAddress(const char* name, void** function, int version, uint64_t) {
  const auto is = [&](const char* other) { return std::strcmp(name, other) == 0; };
  *function = reinterpret_cast<void*>(unexpected);
  if (is("cuInit")) *function = reinterpret_cast<void*>(cuInit);
  if (is("cuDriverGetVersion")) *function = reinterpret_cast<void*>(cuDriverGetVersion);
  if (is("cuGetExportTable")) *function = reinterpret_cast<void*>(cuGetExportTable);
  if (is("cuGetProcAddress")) {
    *function =
        version >= 12000 ? reinterpret_cast<void*>(cuGetProcAddress_v2) : reinterpret_cast<void*>(cuGetProcAddress);
  }
  return kFound;
}

int cuGetProcAddress_v2(const char* name, void** function, int version, uint64_t flags, int* found) {
  if (found != nullptr) *found = kFound;
  return cuGetProcAddress(name, function, version, flags);
}

}  // extern "C"
// NOLINTEND(readability-identifier-naming)
