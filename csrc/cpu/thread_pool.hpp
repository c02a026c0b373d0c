// Threads that sleep until there is work, for builds without OpenMP.
#pragma once

#include <functional>

namespace ensemblead::cpu {

// Calls part(0) to part(parts - 1), each once, and returns when all have returned. The calling thread takes parts
// as well, and all of them where the others are busy with another call or where the system grants no more
// threads. `part` must not throw.
void run_parts(int parts, const std::function<void(int)>& part);

}  // namespace ensemblead::cpu
