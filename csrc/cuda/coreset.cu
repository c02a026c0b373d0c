// select_coreset and project_rows on a CUDA device: the order of the steps, and the host's work between them.
//
// A round picks a block of rows without the host: candidates, the distances between them, the greedy rule
// among them, and the values of all rows brought up to date. Rounds are enqueued ahead and end at once when
// the selection is complete, so the host reads the state only now and then, to report and to stop.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "core/checks.hpp"
#include "core/coreset_rules.hpp"
#include "coreset.hpp"
#include "cuda/coreset_kernels.hpp"
#include "cuda/launch.hpp"

namespace ensemblead::cuda {
namespace {

// Bank rows, or picks in a round, at most: update_values keeps a bit for each.
constexpr int kMostAnchors = 1024;
// Rounds with fewer picks than this are short, and several are enqueued between two looks at the state.
constexpr std::int64_t kLongRound = 256;
constexpr int kShortRounds = 4;
// The scratch takes at most a tenth of the features, or this.
constexpr std::size_t kLeastBudget = std::size_t{8} << 20;
// The bounds of update_values hold up to here, which is beyond 400,000 dimensions.
constexpr double kMostSlack = 0.03;

bool aligned(const float* memory) { return reinterpret_cast<std::uintptr_t>(memory) % sizeof(float4) == 0; }

float value_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// `value` must stay until the device has been waited for: where a GPU can read the host's pages, the copy may
// be under way when this returns.
template <class T>
void copy_to_device(T* to, const T& value, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, &value, sizeof value, cudaMemcpyHostToDevice, stream), "copying to the device");
}

// Waits for everything before it on the stream.
template <class T>
T copy_to_host(const T* from, cudaStream_t stream) {
  T value;
  check(cudaMemcpyAsync(&value, from, sizeof value, cudaMemcpyDeviceToHost, stream),
        "copying from the device");
  check(cudaStreamSynchronize(stream), "waiting for the device");
  return value;
}

void refuse_bad(const float* values, std::int64_t dims, const ScanResult& result, const char* argument,
                cudaStream_t stream) {
  if (result.first_bad == kNoneBad) return;
  const auto index = static_cast<std::int64_t>(result.first_bad);
  const float value = copy_to_host(values + index, stream);
  refuse_not_finite(argument, index, dims, value != value);
}

// The kernels count columns by int.
void check_columns(std::int64_t dims, const char* argument) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  if (dims > kMost)
    throw ValueError(std::string(argument) + " must have at most " + std::to_string(kMost) +
                     " columns on a CUDA device, got " + std::to_string(dims));
}

// The products' errors relative to the sum of both squared norms: one unit in the last place per dimension of
// the product and per 32 dimensions of the norms (a lane's share), a few for centring and the steps after it,
// and a little for squares of these errors. A distance that decides has as many, relative to itself.
double rounding_slack(std::int64_t dims) { return (1.0625 * static_cast<double>(dims) + 40.0) * 0x1p-24; }

class Selection {
 public:
  Selection(const CoresetTask& task, const Work& work) : scope_(work.device.index), task_(task) {
    const std::int64_t rows = task.rows;
    const std::int64_t dims = task.dims;
    rows_.data = task.features;
    rows_.rows = rows;
    rows_.dims = dims;
    rows_.scale = 1.0f;
    rows_.slack = static_cast<float>(std::min(rounding_slack(dims), kMostSlack));
    rows_.filter = !task.plain && rounding_slack(dims) < kMostSlack;
    rows_.vector = dims % 4 == 0 && aligned(task.features);
    rows_.capacity = candidate_capacity(rows, dims, task.num_candidates);
    rows_.stream = to_stream(work);
    lay_out(work_, work.scratch.data, rows, dims, rows_.capacity);
    limit_ = task.plain ? 1 : rows_.capacity;
    if (task.num_candidates > 0) limit_ = std::min<std::int64_t>(limit_, task.num_candidates);
  }

  CoresetResult run() {
    begin();
    start();
    SelectionState state = copy_to_host(work_.state, rows_.stream);
    int rounds = 1;
    for (;;) {
      report(state.made);
      if (state.finished != 0) break;
      for (int r = 0; r < rounds; ++r) enqueue_round();
      const std::int64_t before = state.made;
      state = copy_to_host(work_.state, rows_.stream);
      const std::int64_t made = state.made - before;
      if (made == 0 && state.finished == 0) throw std::logic_error("a round of the selection made no pick");
      rounds = made >= rounds * kLongRound ? 1 : kShortRounds;
    }
    return {state.made, static_cast<std::int64_t>(state.blocks),
            static_cast<std::int64_t>(state.product_pairs), static_cast<std::int64_t>(state.direct_pairs)};
  }

 private:
  // Refuses values that are not finite, and finds the scale.
  void begin() {
    SelectionState state{};
    state.made = task_.start == CoresetStart::kRow ? 1 : 0;
    state.finished = state.made >= task_.size ? 1 : 0;
    state.features = state.bank = {kNoneBad, 0};
    copy_to_device(work_.state, state, rows_.stream);
    check(
        cudaMemsetAsync(work_.histogram, 0, CandidateSearch::kBuckets * sizeof(std::uint32_t), rows_.stream),
        "clearing the histogram");
    const std::int64_t bank_values = task_.bank_rows * rows_.dims;
    scan_values(rows_.data, rows_.rows * rows_.dims, &work_.state->features, rows_.stream);
    if (task_.bank != nullptr) scan_values(task_.bank, bank_values, &work_.state->bank, rows_.stream);
    state = copy_to_host(work_.state, rows_.stream);
    refuse_bad(rows_.data, rows_.dims, state.features, "features", rows_.stream);
    refuse_bad(task_.bank, rows_.dims, state.bank, "bank", rows_.stream);
    rows_.scale = coreset_scale(value_of(std::max(state.features.largest, state.bank.largest)));
    radius_ = squared_radius(task_.radius * static_cast<double>(rows_.scale));
  }

  void start() {
    find_centre(rows_, work_);
    find_norms(rows_, work_);
    if (task_.start == CoresetStart::kMean)
      return start_from_mean(rows_, work_, task_.start_rows, task_.num_start_rows);
    start_from_nowhere(rows_, work_);
    if (task_.start == CoresetStart::kRow) {
      copy_to_device(task_.picks, task_.start_rows[0], rows_.stream);
      return add_anchors(rows_.data, task_.start_rows[0], 1, rows_.vector);
    }
    const bool vector = rows_.dims % 4 == 0 && aligned(task_.bank);
    const std::int64_t step = std::min(rows_.capacity, kMostAnchors);
    for (std::int64_t first = 0; first < task_.bank_rows; first += step) {
      add_anchors(task_.bank, first, static_cast<int>(std::min(step, task_.bank_rows - first)), vector);
      if (!task_.progress) continue;
      check(cudaStreamSynchronize(rows_.stream), "waiting for the device");
      report(0);
    }
  }

  void report(std::int64_t made) {
    if (!task_.progress) return;
    task_.progress(made, task_.size);
    scope_.enter_again();  // a callback may well work on another GPU, and stay there
  }

  void add_anchors(const float* source, std::int64_t first, int count, bool vector) {
    take_anchors(rows_, work_, source, first, count);
    update_values(rows_, work_, {source, work_.candidate_rows, vector});
  }

  void enqueue_round() {
    find_candidates(rows_, work_, limit_);
    find_distances(rows_, work_);
    pick(rows_, work_, task_.picks, task_.size, std::min(rows_.capacity, kMostAnchors), radius_);
    update_values(rows_, work_, {rows_.data, work_.candidate_rows, rows_.vector});
  }

  DeviceScope scope_;
  const CoresetTask& task_;
  CoresetRows rows_{};
  Workspace work_{};
  std::int64_t limit_ = 0;
  float radius_ = -1.0f;
};

}  // namespace

std::size_t lay_out(Workspace& workspace, void* memory, std::int64_t rows, std::int64_t dims, int capacity) {
  std::size_t used = 0;
  const auto place = [&](auto*& part, std::int64_t count) {
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(memory) + used;
    part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(address);
    used += (static_cast<std::size_t>(count) * sizeof(*part) + 255) / 256 * 256;
  };
  const std::int64_t padded = padded_dims(dims);
  place(workspace.state, 1);
  place(workspace.values, rows);
  place(workspace.norms, rows);
  place(workspace.centre, padded);
  place(workspace.histogram, CandidateSearch::kBuckets);
  place(workspace.found_rows, capacity);
  place(workspace.candidate_rows, capacity);
  place(workspace.candidate_bits, capacity);
  place(workspace.anchors, capacity * padded);
  place(workspace.anchor_lows, capacity);
  place(workspace.round_picks, capacity);
  place(workspace.distances, std::int64_t{capacity} * capacity);
  return used;
}

int candidate_capacity(std::int64_t rows, std::int64_t dims, std::int64_t most) {
  constexpr int kLeast = 256;
  constexpr int kGreatest = 2048;
  const std::int64_t useful = most > 0 ? most : rows;
  int capacity = kLeast;
  while (capacity < kGreatest && capacity < useful) capacity *= 2;
  if (most > 0) return capacity;
  const std::size_t features =
      static_cast<std::size_t>(rows) * static_cast<std::size_t>(dims) * sizeof(float);
  const std::size_t budget = std::max(features / 10, kLeastBudget);
  Workspace unused{};
  while (capacity > kLeast && lay_out(unused, nullptr, rows, dims, capacity) > budget) capacity /= 2;
  return capacity;
}

std::size_t select_coreset_scratch(const CoresetTask& task) {
  Workspace unused{};
  const int capacity = candidate_capacity(task.rows, task.dims, task.num_candidates);
  return lay_out(unused, nullptr, task.rows, task.dims, capacity);
}

CoresetResult select_coreset(const CoresetTask& task, const Work& work) {
  check_coreset_extents(task.rows, task.bank_rows, task.size);
  check_columns(task.dims, "features");
  return Selection(task, work).run();
}

std::size_t project_rows_scratch(const ProjectTask&) { return sizeof(ScanResult); }

void project_rows(const ProjectTask& task, const Work& work) {
  check_columns(task.dims, task.argument);
  const DeviceScope scope(work.device.index);
  const cudaStream_t stream = to_stream(work);
  auto* const result = static_cast<ScanResult*>(work.scratch.data);
  const auto scan = [&](const float* values, std::int64_t count) {
    const ScanResult none{kNoneBad, 0};  // lives until the device has been waited for
    copy_to_device(result, none, stream);
    scan_values(values, count, result, stream);
    return copy_to_host(result, stream);
  };
  launch_project(task, stream);
  // Whatever is not finite in an input is not finite in the result either, so this one scan is enough when
  // all is well.
  const ScanResult found = scan(task.projected, task.rows * task.out_dims);
  if (found.first_bad == kNoneBad) return;
  refuse_bad(task.features, task.dims, scan(task.features, task.rows * task.dims), task.argument, stream);
  refuse_bad(task.projection, task.dims, scan(task.projection, task.out_dims * task.dims), "projection",
             stream);
  refuse_bad(task.projected, task.out_dims, found, "the projection of features", stream);
}

}  // namespace ensemblead::cuda
