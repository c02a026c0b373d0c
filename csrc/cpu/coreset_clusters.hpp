// Exact pruning: whole clusters of rows never meet the picks that cannot reach them.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/coreset_update.hpp"

namespace ensemblead::cpu {

// A row whose nearest anchor so far is at distance v, that anchor at distance g from its root, cannot be
// lowered by a pick at distance g + 2 v or more from the root, by the triangle inequality. Rows of one root
// form a cluster, whose reach is the largest g + 2 v: one product of the roots with the picks tells which
// picks each cluster has to meet.
class Clusters {
 public:
  explicit Clusters(Selection& selection);

  // Whether this is the cheaper way to bring these rows, sorted by `seen`, up to date. Decided by the sizes
  // of their clusters and by the products that the last run saved.
  bool worthwhile(const std::vector<std::int32_t>& rows);
  // After `worthwhile` of the same rows.
  void run(const std::vector<std::int32_t>& rows);

  std::int64_t product_pairs() const;
  std::int64_t direct_pairs() const;

 private:
  class Worker;
  struct Cluster {
    std::int32_t root;  // -1: rows that no anchor has lowered yet
    std::int32_t seen;  // the least among its rows
    float reach;
    std::int64_t begin;  // its rows in members_
    std::int64_t end;
  };

  std::int32_t root_of(std::int32_t row) const {
    const std::int32_t nearest = selection_.nearest[row];
    return nearest < 0 ? -1 : selection_.roots[nearest];
  }
  void gather(const std::vector<std::int32_t>& rows);

  Selection& selection_;
  std::vector<Worker> workers_;  // one per thread
  std::vector<std::int64_t> sizes_;
  std::vector<Cluster> clusters_;
  std::vector<std::int32_t> members_;
  std::int64_t num_clusters_ = 0;
  std::int64_t next_try_ = 0;  // anchors there must be before the next run, if the last one saved too little
};

// One thread's work on some clusters.
class Clusters::Worker {
 public:
  explicit Worker(Selection& selection);

  void run(const Cluster* clusters, std::int64_t count, const std::int32_t* members);
  std::int64_t product_pairs() const { return root_pairs_ + rows_.product_pairs(); }
  std::int64_t direct_pairs() const { return rows_.direct_pairs(); }

 private:
  void find_reached(const Cluster* clusters, std::int64_t count);

  Selection& selection_;
  float slack_;
  RowUpdate rows_;
  PackedAnchors picks_;
  std::vector<float> sketches_;
  std::vector<float> thresholds_;
  std::vector<float> products_;
  std::vector<std::vector<std::int32_t>> reached_;
  std::int64_t root_pairs_ = 0;
};

}  // namespace ensemblead::cpu
