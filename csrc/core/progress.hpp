// The callback with which a long operation reports and can be stopped.
#pragma once

#include <cstdint>
#include <functional>

namespace ensemblead {

// Called between blocks of work, on the thread that started the operation. It stops the operation by
// throwing.
using Progress = std::function<void(std::int64_t done, std::int64_t total)>;

}  // namespace ensemblead
