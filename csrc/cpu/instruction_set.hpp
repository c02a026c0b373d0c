// The choice of the build of the SIMD loops that runs on this processor.
//
// The files named *_simd.cpp are compiled once per instruction set, each into a namespace of its own, and
// export one table of function pointers; the rest of the CPU code is compiled once and asks `for_this_cpu`
// for the right table. Whole files rather than function clones: GCC lowers generic vectors to the baseline's
// width before it clones.
#pragma once

namespace ensemblead::cpu {

enum class InstructionSet { kBaseline, kV3, kV4, kV4Dots };

// Chosen once from what the processor has (AVX2 + FMA + F16C, or AVX-512 F/BW/CD/DQ/VL besides, or AVX-512 VNNI
// besides that), whatever its vendor. The environment variable
// ENSEMBLEAD_INSTRUCTION_SET=baseline|x86-64-v3|x86-64-v4|x86-64-v4+vnni can lower the choice; a value that is
// unknown or beyond the processor throws ValueError.
InstructionSet instruction_set();

// Whether there are instructions for dot products of whole numbers of eight bits.
inline bool has_dot_products() { return instruction_set() == InstructionSet::kV4Dots; }

const char* name(InstructionSet set);

// The table of the best build.
template <class Table>
const Table& for_this_cpu(const Table& baseline, const Table& v3, const Table& v4) {
  switch (instruction_set()) {
    case InstructionSet::kV4Dots:
    case InstructionSet::kV4:
      return v4;
    case InstructionSet::kV3:
      return v3;
    default:
      return baseline;
  }
}

}  // namespace ensemblead::cpu

// For the header of a *_simd.cpp file, in namespace ensemblead::cpu: declares the constant `table` of every
// build, and the function `table()`, which returns the one for this processor. On other processors than
// x86-64 there is the baseline alone.
#if defined(__x86_64__)
#define ENSEMBLEAD_SIMD_TABLE(Table, table) \
  namespace baseline {                      \
  extern const Table table;                 \
  }                                         \
  namespace v3 {                            \
  extern const Table table;                 \
  }                                         \
  namespace v4 {                            \
  extern const Table table;                 \
  }                                         \
  static inline const Table& table() { return for_this_cpu(baseline::table, v3::table, v4::table); }
#else
#define ENSEMBLEAD_SIMD_TABLE(Table, table) \
  namespace baseline {                      \
  extern const Table table;                 \
  }                                         \
  static inline const Table& table() { return baseline::table; }
#endif
