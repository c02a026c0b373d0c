// Reads a folder that `ensemblead export` wrote for OpenVINO, and scores images: no Python, no torch.
//
//   g++ -std=c++17 exported.cpp -o exported $(pkg-config --cflags --libs openvino)
//   ./exported EXPORT part1.ppm part2.ppm
//
// Images are 8-bit binary PPM, to keep decoding out of the example: RGB of the size that export.json states.
#include <cstdint>
#include <fstream>
#include <iostream>
#include <openvino/openvino.hpp>
#include <stdexcept>
#include <string>

// The pixels of an image [1, height, width, 3].
static ov::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  std::size_t width = 0, height = 0, largest = 0;
  file >> kind >> width >> height >> largest;
  if (kind != "P6" || largest != 255) throw std::runtime_error(path + " is no 8-bit binary PPM");
  file.get();
  ov::Tensor image(ov::element::u8, {1, height, width, 3});
  file.read(reinterpret_cast<char*>(image.data<std::uint8_t>()), image.get_byte_size());
  if (!file) throw std::runtime_error(path + " is incomplete");
  return image;
}

int main(int argc, char** argv) try {
  if (argc < 3) throw std::runtime_error("usage: exported EXPORT IMAGE.ppm ...");
  ov::Core core;
  auto model = core.read_model(std::string(argv[1]) + "/model.xml");
  // One image at a time. The batch is the only size that the graph leaves open.
  ov::PartialShape shape = model->input().get_partial_shape();
  shape[0] = 1;
  model->reshape(shape);
  // "f32" for an export in float32 or int8, "bf16" for one in bfloat16: export.json says which.
  auto compiled = core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32),
                                     ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY));
  auto request = compiled.create_infer_request();
  std::cout.precision(9);
  for (int i = 2; i < argc; ++i) {
    request.set_input_tensor(read_ppm(argv[i]));
    request.infer();
    const float score = request.get_tensor("anomaly_score").data<float>()[0];
    const bool anomalous = request.get_tensor("is_anomalous").data<bool>()[0];
    // The map, float32 [1, height, width], is request.get_tensor("anomaly_map").
    std::cout << argv[i] << " " << score << (anomalous ? " anomalous" : " normal") << "\n";
  }
} catch (const std::exception& error) {
  std::cerr << "exported: " << error.what() << "\n";
  return 1;
}
