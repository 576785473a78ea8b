// Fuzz target of the reader of torch.save's files, its zip archives and its pickles: the first byte chooses what the
// others are, a whole file, or a pickle that is put into a good archive.
#include "foveate/io/torch_file.h"
#include "tests/fuzz/read_stored.h"
#include "tests/support/torch_writer.h"

namespace {

using foveate::io::TorchFile;
using foveate::test::PickleWriter;
using foveate::test::succeeds;

constexpr char kWholeFile = 0, kPickle = 1;

const std::vector<foveate::test::Storage>& storages() {
  static const std::vector<foveate::test::Storage> list = {
      {"0", std::string(24, '\1')}, {"1", "half"}, {"2", ""}, {"3", std::string(16, '\2')}};
  return list;
}

bool accepts(std::string_view input) {
  if (input.empty()) return false;
  const std::string_view rest = input.substr(1);
  const std::string whole = input[0] == kPickle ? foveate::test::torch_file(rest, storages()) : std::string(rest);
  const auto bytes = foveate::test::copy_of(reinterpret_cast<const uint8_t*>(whole.data()), whole.size());
  return succeeds([&] {
    const TorchFile file = TorchFile::parse(bytes, "fuzz");
    foveate::test::read_stored(file);
    if (file.others().size() > 4 * (size_t(1) << 20)) std::abort();
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  accepts({reinterpret_cast<const char*>(data), size});
  return 0;
}

#ifndef FOVEATE_LIBFUZZER
namespace {

std::vector<std::string> seed_files() {
  PickleWriter views, wrapped, framed(4);
  views.raw("}q\1(").text("t").tensor("0", 6, 0, {3, 2}, {1, 3}).text("s").tensor("0", 6, 5, {}, {});
  views.text("h").tensor("1", 2, 0, {2}, {1}, "HalfStorage").text("none").tensor("2", 0, 0, {0, 4}, {4, 1});
  views.text("d").tensor("3", 2, 0, {2, 2, 1}, {1, 0, 7}, "DoubleStorage").raw("u");
  wrapped.raw("}(").text("model").global("collections", "OrderedDict").raw(")Rq\1(").text("p");
  wrapped.global("torch._utils", "_rebuild_parameter").tensor("0", 6, 1, {5}, {1}).raw("\x88}\x87Ru}b");
  wrapped.text("f8").global("torch._utils", "_rebuild_tensor_v3").raw("(");
  wrapped.storage("UntypedStorage", "3", 16, "torch.storage").view(2, {7}, {2}).global("torch", "float8_e5m2");
  wrapped.raw("tR").text("again").raw("](h\1h\1NK\1M\1\1G........\x88\x89").integer(-7).raw("e");
  wrapped.text("size").global("torch", "Size").raw("K\1K\2\x86\x85Ru");
  framed.raw("\x95........").raw("}\x94(\x8c\1a\x94\x8c\5torch\x94\x8c\4Size\x94\x93\x94)RK\5\x8f(K\1\x90K\6(N\x91u");
  const std::string pickles[] = {views.end(), wrapped.end(), framed.end()};
  std::vector<std::string> seeds;
  for (const std::string& pickle : pickles) {
    seeds.push_back(kPickle + pickle);
    seeds.push_back(kWholeFile + foveate::test::torch_file(pickle, storages()));
  }
  return seeds;
}

}  // namespace

int main(int count, char** arguments) { return foveate::test::mutate_files(count, arguments, seed_files(), accepts); }
#endif
