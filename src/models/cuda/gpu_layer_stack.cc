#include <array>
#include <vector>

#include "models/cuda/layer_stack_kernel.h"
#include "models/layer_stack.h"
#include "tensor/cuda/tensor_map.h"
#include "tensor/device_buffer.h"

namespace onepass {
namespace {

class GpuLayerStack final : public LayerStack {
 public:
  GpuLayerStack(const StackParams& params, DeviceBuffer maps, DeviceBuffer layers, DeviceBuffer exchange)
      : params_(params), maps_(std::move(maps)), layers_(std::move(layers)), exchange_(std::move(exchange)) {}

  int max_rows() const override { return params_.plan.max_rows; }

  Status run(int num_rows, float* hidden, const AttentionBackend& backend, const Stream& stream) override {
    const PagedDecodes step = backend.decodes();
    StackParams params = params_;
    params.num_rows = num_rows;
    params.hidden = hidden;
    params.cache_seqlens = step.cache_seqlens;
    params.slots = step.out_cache_loc;
    params.page_table = step.page_table;
    params.page_table_stride = step.page_table_stride;
    return run_layer_stack(params, stream.cuda);
  }

 private:
  const StackParams params_;
  const DeviceBuffer maps_, layers_, exchange_;
};

bool is_plain(const AttentionLayer& layer, const StackShape& shape) {
  return layer.num_heads == shape.num_heads && layer.num_kv_heads == shape.num_kv_heads &&
         layer.head_dim == shape.head_dim && layer.head_dim_v == shape.head_dim && layer.rotary_dim == shape.head_dim &&
         layer.attention_chunk == 0 && layer.softcap == 0.0f && layer.sinks == nullptr;
}

StackShape shape_of(const LayerStackModel& model) {
  const ModelConfig& config = model.config;
  const AttentionLayer& attention = model.attention[0];
  return {.dtype = model.weights.layers[0].qkv.weight.dtype(),
          .num_layers = config.num_layers,
          .hidden_size = config.hidden_size,
          .intermediate_size = config.intermediate_size,
          .num_heads = config.num_heads,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .norm_eps = config.rms_norm_eps,
          .softmax_scale = attention.softmax_scale,
          .rope_attention_factor = attention.rope_attention_factor,
          .rope_inv_freq = attention.rope_inv_freq,
          .page_size = model.pool.config().page_size,
          .row_stride = model.pool.k_row_stride(),
          .head_stride = model.pool.k_head_stride()};
}

// Of K and V of all layers, in turn.
StatusOr<std::vector<CUtensorMap>> key_maps(const LayerStackModel& model, const StackShape& shape) {
  const int64_t keys = int64_t{model.pool.config().num_pages} * shape.page_size;
  const std::array<int64_t, 3> sizes = {shape.head_dim, shape.num_kv_heads, keys};
  const std::array<int64_t, 2> strides = {shape.head_stride, shape.row_stride};
  const std::array<int, 3> box = {64, 1, stack_box_keys(shape.page_size)};
  std::vector<CUtensorMap> maps;
  maps.reserve(2 * static_cast<size_t>(shape.num_layers));
  for (int index = 0; index < shape.num_layers; ++index) {
    for (void* const pool : {model.pool.k(index), model.pool.v(index)}) {
      ONEPASS_ASSIGN_OR_RETURN(maps.emplace_back(), make_tensor_map(pool, shape.dtype, sizes, strides, box));
    }
  }
  return maps;
}

StackLayer layer_of(const LayerStackModel& model, int index, const CUtensorMap* maps) {
  const LayerWeights& layer = model.weights.layers[index];
  const auto data = [](const Linear& linear) { return linear.weight.slices()[0].data; };
  return {.input_norm = layer.input_norm.data,
          .qkv = data(layer.qkv),
          .qkv_bias = layer.qkv.bias.data,
          .q_norm = layer.q_norm.data,
          .k_norm = layer.k_norm.data,
          .o = data(layer.o),
          .o_bias = layer.o.bias.data,
          .post_attention_norm = layer.post_attention_norm.data,
          .gate_up = data(layer.gate_up),
          .gate_up_bias = layer.gate_up.bias.data,
          .down = data(layer.down),
          .down_bias = layer.down.bias.data,
          .k_pool = model.pool.k(index),
          .v_pool = model.pool.v(index),
          .k_map = maps + 2 * index,
          .v_map = maps + 2 * index + 1,
          .window_left = model.attention[index].window_left};
}

}  // namespace

StatusOr<std::unique_ptr<LayerStack>> make_gpu_layer_stack(const LayerStackModel& model, const Stream& stream) {
  ONEPASS_ASSIGN_OR_RETURN(const GpuInfo gpu, query_gpu(stream.device.index));
  StackParams params{.shape = shape_of(model)};
  const KvPoolConfig& kv = model.pool.config();
  if (kv.dtype != params.shape.dtype || kv.head_dim != kv.head_dim_v) return std::unique_ptr<LayerStack>();
  for (const AttentionLayer& layer : model.attention) {
    if (!is_plain(layer, params.shape)) return std::unique_ptr<LayerStack>();
  }
  params.plan = plan_stack(params.shape, gpu);
  if (params.plan.max_rows == 0) return std::unique_ptr<LayerStack>();

  ONEPASS_ASSIGN_OR_RETURN(const std::vector<CUtensorMap> maps, key_maps(model, params.shape));
  const auto map_bytes = std::as_bytes(std::span(maps));
  ONEPASS_ASSIGN_OR_RETURN(DeviceBuffer of_maps, DeviceBuffer::allocate_uninitialized(map_bytes.size(), stream.device));
  ONEPASS_RETURN_IF_ERROR(of_maps.upload(map_bytes));
  std::vector<StackLayer> layers;
  layers.reserve(params.shape.num_layers);
  for (int index = 0; index < params.shape.num_layers; ++index)
    layers.push_back(layer_of(model, index, of_maps.as<CUtensorMap>()));
  const auto bytes = std::as_bytes(std::span<const StackLayer>(layers));
  ONEPASS_ASSIGN_OR_RETURN(DeviceBuffer of_layers, DeviceBuffer::allocate_uninitialized(bytes.size(), stream.device));
  ONEPASS_RETURN_IF_ERROR(of_layers.upload(bytes));
  ONEPASS_ASSIGN_OR_RETURN(DeviceBuffer exchange,
                           DeviceBuffer::allocate_uninitialized(params.plan.exchange_bytes, stream.device));
  ONEPASS_RETURN_IF_ERROR(init_stack_exchange(params.plan, exchange.data(), stream.cuda));
  params.layers = of_layers.as<StackLayer>();
  params.exchange = exchange.data();
  return std::make_unique<GpuLayerStack>(params, std::move(of_maps), std::move(of_layers), std::move(exchange));
}

}  // namespace onepass
