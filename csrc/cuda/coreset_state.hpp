// The data that the kernels of a selection share: its state on the device, and the layout of the scratch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/candidate_search.hpp"

namespace ensemblead::cuda {

// The result of scan_values.
struct ScanResult {
  unsigned long long first_bad;  // index of the first value that is not finite; kNoneBad if there is none
  std::uint32_t largest;         // bits of the largest magnitude among the finite ones
};
constexpr unsigned long long kNoneBad = ~0ull;

// One per selection, in device memory; the host reads it back now and then.
struct SelectionState {
  std::int64_t made;         // picks so far
  std::int32_t round_picks;  // picks (or other anchors) that the values do not know of yet
  std::int32_t finished;     // the selection is complete, and every kernel returns at once
  std::int32_t found;        // candidates of this round
  std::uint32_t top;         // bits of the largest value
  std::uint32_t tickets;     // blocks of a histogram that are done
  CandidateSearch search;
  unsigned long long blocks;
  unsigned long long product_pairs;
  unsigned long long direct_pairs;
  ScanResult features;
  ScanResult bank;
};

// Parts of the scratch memory, each aligned to 256 bytes.
struct Workspace {
  SelectionState* state;
  float* values;             // [rows] squared distances to the nearest pick, exact at the start of a round
  float* norms;              // [rows] squared norms of the centred rows
  float* centre;             // [padded] where the middle of the rows is, roughly; zeros behind
  std::uint32_t* histogram;  // [CandidateSearch::kBuckets], zeros between the kernels
  std::int32_t* found_rows;  // [capacity] candidates in no order
  std::int32_t* candidate_rows;   // [capacity] in ascending order
  std::uint32_t* candidate_bits;  // [capacity] their values
  float* anchors;                 // [capacity, padded] centred candidates; zeros behind the dims
  float* anchor_lows;             // [capacity] lower bounds of their squared norms
  std::int32_t* round_picks;      // [capacity] which candidates were picked in this round
  float* distances;               // [capacity, capacity] squared, between candidates
};

// Candidates in a round: 256, 512, 1024 or 2048, the most that keep the scratch memory below a tenth of the
// features or 8 MiB, whichever is more. Where `most` is above 0, for tests: the least that holds `most`.
int candidate_capacity(std::int64_t rows, std::int64_t dims, std::int64_t most);

// Rows of anchors are a multiple of this long.
constexpr std::int64_t kDepth = 8;
constexpr std::int64_t padded_dims(std::int64_t dims) { return (dims + kDepth - 1) / kDepth * kDepth; }

// Lays the workspace out from `memory` on, which may be null, and returns its size.
std::size_t lay_out(Workspace& workspace, void* memory, std::int64_t rows, std::int64_t dims, int capacity);

}  // namespace ensemblead::cuda
