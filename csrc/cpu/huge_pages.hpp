// Large outputs in large pages.
#pragma once

#include <cstdint>

namespace ensemblead::cpu {

// Asks Linux to back [data, data + bytes) with large pages where it has none yet, as NumPy does for its own
// arrays: a freshly allocated output costs a page fault per page at its first write, which can take longer
// than the kernel that writes it. Only a hint, and only whole large pages inside the range; elsewhere it does
// nothing.
void prefer_huge_pages(void* data, std::int64_t bytes);

}  // namespace ensemblead::cpu
