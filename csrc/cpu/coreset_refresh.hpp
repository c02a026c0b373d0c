// Bringing the values of listed rows up to date with all anchors, by whichever way the data favours.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/coreset_clusters.hpp"
#include "cpu/coreset_update.hpp"

namespace ensemblead::cpu {

class Refresh {
 public:
  // `plain`: every distance is computed, for tests.
  Refresh(Selection& selection, bool plain);

  void run(const std::vector<std::int32_t>& rows);

 private:
  void run_plainly(const std::vector<std::int32_t>& rows);
  void sort_by_seen(const std::vector<std::int32_t>& rows);
  void count_work();
  void run_by_products(const std::vector<std::int32_t>& rows);

  Selection& selection_;
  bool plain_;
  Clusters clusters_;
  std::vector<RowUpdate> updates_;  // one per thread, made where a failed allocation can still be reported
  std::vector<std::int64_t> places_;
  std::vector<std::int32_t> sorted_;
};

}  // namespace ensemblead::cpu
