// The search for candidates and the rules of a coreset, as test_candidate_search.py calls them.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/candidate_search.hpp"
#include "core/coreset_rules.hpp"

using ensemblead::CandidateSearch;

namespace {

// What the histogram kernels do, over `count` rows of the given numbers. Returns the levels it took.
int search(const std::uint32_t* bits, const std::uint32_t* rows, std::int64_t count, std::int64_t num_rows,
           std::int64_t limit, std::uint64_t* threshold) {
  CandidateSearch found{};
  found.limit = limit;
  found.rows = num_rows;
  found.begin(*std::max_element(bits, bits + count));
  while (found.done == 0) {
    if (found.level == CandidateSearch::kMostLevels) return -1;
    std::vector<std::int64_t> counts(CandidateSearch::kBuckets, 0);
    for (std::int64_t i = 0; i < count; ++i) {
      const int bucket = found.bucket(bits[i], rows[i]);
      if (bucket != CandidateSearch::kNone) ++counts[static_cast<std::size_t>(bucket)];
    }
    const std::int64_t room = limit - found.taken;
    std::int64_t before = 0;
    int crossing = 0;
    for (; crossing < CandidateSearch::kBuckets; ++crossing) {
      const std::int64_t next = before + counts[static_cast<std::size_t>(crossing)];
      if (next > room) break;
      before = next;
    }
    const int level = found.level;
    found.finish_level(crossing, before);
    if (found.done == 0 && found.level != level + 1) return -2;
    if (found.done != 0) {
      *threshold = found.threshold;
      return level + 1;
    }
  }
  return -3;
}

}  // namespace

extern "C" {

int probe_search(const std::uint32_t* bits, const std::uint32_t* rows, std::int64_t count,
                 std::int64_t num_rows, std::int64_t limit, std::uint64_t* threshold) {
  return search(bits, rows, count, num_rows, limit, threshold);
}

int probe_levels(std::int64_t rows, std::int64_t limit) { return CandidateSearch::levels(rows, limit); }

std::uint64_t probe_key(std::uint32_t bits, std::uint32_t row) { return ensemblead::pick_key(bits, row); }

float probe_squared_radius(double radius) { return ensemblead::squared_radius(radius); }

float probe_scale(float largest) { return ensemblead::coreset_scale(largest); }
}
