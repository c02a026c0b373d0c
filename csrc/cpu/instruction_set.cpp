#include "cpu/instruction_set.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <string>

#include "core/checks.hpp"

namespace ensemblead::cpu {
namespace {

#if defined(__x86_64__)
constexpr bool has(unsigned features, unsigned wanted) { return (features & wanted) == wanted; }

// The registers that the operating system keeps for every thread: no others may be used.
std::uint64_t kept_registers() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return std::uint64_t{high} << 32 | low;
}

// Asked of the processor itself: __builtin_cpu_supports needs a library of the compiler that Windows's linkers
// do not find.
InstructionSet best_supported() {
  constexpr unsigned kFirst = bit_FMA | bit_OSXSAVE | bit_AVX | bit_F16C;
  constexpr unsigned kV3 = bit_AVX2 | bit_BMI | bit_BMI2;
  constexpr unsigned kV4 = unsigned{bit_AVX512F} | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ |
                           static_cast<unsigned>(bit_AVX512VL);
  constexpr std::uint64_t kAvxRegisters = 0x6;      // of SSE and AVX
  constexpr std::uint64_t kAvx512Registers = 0xe6;  // besides: masks, upper halves, sixteen more registers
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || !has(ecx, kFirst)) return InstructionSet::kBaseline;
  const std::uint64_t registers = kept_registers();
  if ((registers & kAvxRegisters) != kAvxRegisters) return InstructionSet::kBaseline;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || !has(ebx, kV3))
    return InstructionSet::kBaseline;
  if (!has(ebx, kV4) || (registers & kAvx512Registers) != kAvx512Registers) return InstructionSet::kV3;
  return has(ecx, bit_AVX512VNNI) ? InstructionSet::kV4Dots : InstructionSet::kV4;
}
#else
InstructionSet best_supported() { return InstructionSet::kBaseline; }
#endif

InstructionSet choose() {
  const InstructionSet best = best_supported();
  const char* wish = std::getenv("ENSEMBLEAD_INSTRUCTION_SET");
  if (wish == nullptr || *wish == '\0') return best;
  for (const InstructionSet set :
       {InstructionSet::kBaseline, InstructionSet::kV3, InstructionSet::kV4, InstructionSet::kV4Dots}) {
    if (std::string(wish) == name(set) && set <= best) return set;
  }
  throw ValueError(
      std::string("ENSEMBLEAD_INSTRUCTION_SET must be baseline, x86-64-v3, x86-64-v4 or x86-64-v4+vnni "
                  "and supported by this processor (best here: ") +
      name(best) + "), got '" + wish + "'");
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

const char* name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kV4Dots:
      return "x86-64-v4+vnni";
    case InstructionSet::kV4:
      return "x86-64-v4";
    case InstructionSet::kV3:
      return "x86-64-v3";
    default:
      return "baseline";
  }
}

}  // namespace ensemblead::cpu
