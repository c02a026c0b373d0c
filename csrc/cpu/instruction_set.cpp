#include "cpu/instruction_set.hpp"

#include <cstdlib>
#include <string>

#include "core/checks.hpp"

namespace ensemblead::cpu {
namespace {

InstructionSet best_supported() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                  __builtin_cpu_supports("f16c");
  const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v3 && v4) return InstructionSet::kV4;
  if (v3) return InstructionSet::kV3;
#endif
  return InstructionSet::kBaseline;
}

InstructionSet choose() {
  const InstructionSet best = best_supported();
  const char* wish = std::getenv("ENSEMBLEAD_INSTRUCTION_SET");
  if (wish == nullptr || *wish == '\0') return best;
  for (const InstructionSet set : {InstructionSet::kBaseline, InstructionSet::kV3, InstructionSet::kV4}) {
    if (std::string(wish) == name(set) && set <= best) return set;
  }
  throw ValueError(
      std::string("ENSEMBLEAD_INSTRUCTION_SET must be baseline, x86-64-v3 or x86-64-v4 and supported by "
                  "this processor (best here: ") +
      name(best) + "), got '" + wish + "'");
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

const char* name(InstructionSet set) {
  switch (set) {
    case InstructionSet::kV4:
      return "x86-64-v4";
    case InstructionSet::kV3:
      return "x86-64-v3";
    default:
      return "baseline";
  }
}

}  // namespace ensemblead::cpu
