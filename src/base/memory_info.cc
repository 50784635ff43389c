#include "base/memory_info.h"

#include <unistd.h>

#include <fstream>
#include <string>

namespace onepass {

int64_t machine_memory() {
  const int64_t pages = ::sysconf(_SC_PHYS_PAGES), page = ::sysconf(_SC_PAGESIZE);
  return pages > 0 && page > 0 ? pages * page : INT64_MAX;
}

int64_t available_memory() {
  std::ifstream meminfo("/proc/meminfo");
  std::string name, unit;
  int64_t kibibytes = 0;
  while (meminfo >> name >> kibibytes) {
    if (name == "MemAvailable:") return kibibytes * 1024;
    std::getline(meminfo, unit);
  }
  return INT64_MAX;
}

}  // namespace onepass
