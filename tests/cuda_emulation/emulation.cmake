# Included by the main file for ENSEMBLEAD_CUDA=EMULATED: the .cu files as C++, against a header that stands in for
# CUDA's.
set(emulation_dir ${CMAKE_CURRENT_SOURCE_DIR}/tests/cuda_emulation)
set(emulation_sources
  ${emulation_dir}/fibre.cpp
  ${emulation_dir}/runtime_api.cpp
  ${emulation_dir}/scheduler.cpp
)
set_source_files_properties(${cuda_sources} ${emulation_dir}/probe.cu PROPERTIES
  LANGUAGE CXX COMPILE_OPTIONS "-x;c++;-Wno-unknown-pragmas")

add_library(cuda_emulation OBJECT ${emulation_sources})
target_include_directories(cuda_emulation PUBLIC ${emulation_dir}/include csrc)
target_compile_definitions(cuda_emulation PUBLIC ENSEMBLEAD_CUDA_EMULATED)
target_sources(ensemblead_kernels PRIVATE $<TARGET_OBJECTS:cuda_emulation>)
target_include_directories(ensemblead_kernels BEFORE PRIVATE ${emulation_dir}/include)
target_compile_definitions(ensemblead_kernels PRIVATE ENSEMBLEAD_CUDA_EMULATED)

# Small kernels of its own, right ones and wrong ones, that show what the emulation finds.
add_library(emulation_probe MODULE ${emulation_dir}/probe.cu csrc/cuda/launch.cu $<TARGET_OBJECTS:cuda_emulation>)
target_include_directories(emulation_probe PRIVATE ${emulation_dir}/include csrc)
target_compile_definitions(emulation_probe PRIVATE ENSEMBLEAD_CUDA_EMULATED)
set_target_properties(emulation_probe PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/probe)
