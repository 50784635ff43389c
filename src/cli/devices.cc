// onepass devices: what this machine offers and what of it this binary can use.
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>

#include "base/cpu_features.h"
#include "cli/command.h"
#include "tensor/cuda_info.h"

namespace onepass {
namespace {

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

std::string version(int number) { return str_cat(number / 1000, ".", number % 1000 / 10); }

Status print_devices() {
  std::string isas;
  for (const CpuIsa isa : supported_cpu_isas()) isas += str_cat(isas.empty() ? "" : ", ", to_string(isa));
  std::printf("cpu     %s, %u threads, kernels: %s\n", cpu_name().c_str(), std::thread::hardware_concurrency(),
              isas.c_str());

  const CudaInfo cuda = query_cuda();
  if (!cuda.problem.empty()) std::printf("cuda    none: %s\n", cuda.problem.c_str());
  for (size_t i = 0; i < cuda.gpus.size(); ++i) {
    const GpuInfo& gpu = cuda.gpus[i];
    std::printf("cuda:%zu  %s, %d SMs, %.1f GiB, compute capability %d.%d, driver for CUDA %s%s\n", i, gpu.name.c_str(),
                gpu.multiprocessors, static_cast<double>(gpu.memory_bytes) / (1 << 30), gpu.compute_capability / 10,
                gpu.compute_capability % 10, version(cuda.driver_version).c_str(),
                gpu.usable ? "" : " (no kernels for it in this binary)");
  }
  return ok_status();
}

}  // namespace

void add_devices_command(CLI::App& app, Action& action) {
  auto* command = app.add_subcommand("devices", "List the processor, its instruction sets and the GPUs");
  command->callback([&action] { action = print_devices; });
}

}  // namespace onepass
