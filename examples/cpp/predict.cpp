// Detections of a picture by a model that tools/export.py --format aoti wrote. No Python in the process.
//
//   predict MODEL.pt2 PICTURE.ppm SCORE LIBRARY...
//
// LIBRARY: what has the model's operators: ga_scope/_operators.so, and for an R-CNN torchvision's _C_stable.so.
// PICTURE: binary PPM (P6). Prints, best first: name score x1 y1 x2 y2, in pixels of the picture.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// (3, H, W) uint8.
at::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int width = 0, height = 0, most = 0;
  file >> magic >> width >> height >> most;
  file.get();
  if (!file || magic != "P6" || width < 1 || height < 1 || most != 255) {
    throw std::runtime_error(path + ": expected a binary PPM (P6) of 8 bits");
  }
  at::Tensor pixels = at::empty({height, width, 3}, at::kByte);
  file.read(reinterpret_cast<char*>(pixels.data_ptr()), pixels.numel());
  if (!file) throw std::runtime_error(path + ": ends too early");
  return pixels.permute({2, 0, 1});
}

std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> found;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) found.push_back(line);
  return found;
}

void predict(int count, char** arguments) {
  if (count < 5) throw std::runtime_error("predict MODEL.pt2 PICTURE.ppm SCORE LIBRARY...");
  for (int i = 4; i < count; ++i) {
    if (!dlopen(arguments[i], RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
  }
  c10::InferenceMode inference;
  torch::inductor::AOTIModelPackageLoader loader(arguments[1]);
  const auto model = loader.get_metadata();

  // The picture: resized, in the model's order of channels, padded to multiples of its stride.
  at::Tensor picture = read_ppm(arguments[2]);
  const double file_height = picture.size(1), file_width = picture.size(2);
  const double shorter = std::stod(model.at("short_side")), longest = std::stod(model.at("longest"));
  double scale = 1;
  if (shorter > 0) {
    scale = std::min(shorter / std::min(file_height, file_width), longest / std::max(file_height, file_width));
  }
  const int64_t height = std::max<int64_t>(file_height * scale + 0.5, 1);
  const int64_t width = std::max<int64_t>(file_width * scale + 0.5, 1);
  // Bytes with channels last, of which torch makes what Pillow makes.
  at::Tensor resized = at::_upsample_bilinear2d_aa(picture.unsqueeze(0), {height, width}, false).to(at::kFloat);
  if (model.at("format") == "BGR") resized = resized.flip(1);
  const int64_t stride = std::stoll(model.at("stride")), smallest = std::stoll(model.at("smallest"));
  const auto room = [&](int64_t side) { return std::max((side + stride - 1) / stride * stride, smallest) - side; };
  at::Tensor images = at::constant_pad_nd(resized, {0, room(width), 0, room(height)}).contiguous();
  at::Tensor sizes = at::tensor({height, width}, at::kLong).unsqueeze(0);

  const std::vector<at::Tensor> found = loader.run({images, sizes});  // boxes, scores, classes, count
  const auto names = lines(model.at("classes"));
  const auto boxes = found[0].accessor<float, 3>();
  const auto scores = found[1].accessor<float, 2>();
  const auto classes = found[2].accessor<int64_t, 2>();
  const double across = file_width / width, down = file_height / height;
  for (int64_t i = 0; i < found[3].item<int64_t>(); ++i) {
    if (scores[0][i] <= std::stod(arguments[3])) continue;
    const auto box = boxes[0][i];
    std::printf("%s %.4f %.2f %.2f %.2f %.2f\n", names[classes[0][i]].c_str(), scores[0][i], box[0] * across,
                box[1] * down, box[2] * across, box[3] * down);
  }
}

}  // namespace

int main(int count, char** arguments) {
  try {
    predict(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
