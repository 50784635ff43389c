#include "models/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

namespace onepass {
namespace {

class SafetensorsTest : public testing::Test {
 protected:
  SafetensorsTest() : path_(testing::TempDir() + "onepass_safetensors_test_" + std::to_string(::getpid())) {}
  ~SafetensorsTest() override { std::filesystem::remove(path_); }

  void write(const std::string& bytes) const { std::ofstream(path_, std::ios::binary) << bytes; }

  // A file with this header and `data_size` bytes of data; the header's length may lie.
  void write(const std::string& header, size_t data_size, uint64_t header_size) const {
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &header_size, 8);
    write(bytes + header + std::string(data_size, '\1'));
  }

  // One line that begins with the path and holds `expected`.
  void expect_refused(const std::string& expected) const {
    const Status status = SafetensorsFile::open(path_).status();
    ASSERT_FALSE(status.ok()) << "expected: " << expected;
    const std::string message(status.message());
    EXPECT_EQ(message.rfind(path_ + ": ", 0), 0u) << message;
    EXPECT_NE(message.find(expected), std::string::npos) << message << "\nexpected: " << expected;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_LT(message.size(), 600u);
  }
  void expect_refused(const std::string& header, size_t data_size, const std::string& expected) const {
    write(header, data_size, header.size());
    expect_refused(expected);
  }

  const std::string path_;
};

TEST_F(SafetensorsTest, ReadsTensorsInAnyOrderAndEmptyOnes) {
  const std::string header = R"({"__metadata__":{"format":"pt"},
    "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},
    "empty":{"dtype":"F32","shape":[4,0],"data_offsets":[8,8]},
    "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
    "scalar":{"dtype":"I64","shape":[],"data_offsets":[20,28]}}   )";
  write(header, 28, header.size());
  const auto file = SafetensorsFile::open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors().size(), 4u);
  const TensorView &a = file->tensors().at("a"), &b = file->tensors().at("b");
  EXPECT_EQ(b.dtype, DType::kBF16);
  EXPECT_EQ(b.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b.size_bytes(), 12u);
  EXPECT_EQ(b.data - a.data, 8);
  EXPECT_EQ(file->tensors().at("empty").num_elements(), 0);
  EXPECT_EQ(file->tensors().at("scalar").num_elements(), 1);
  EXPECT_EQ(shape_string(b.shape), "[2, 3]");
}

TEST_F(SafetensorsTest, WriterAndReaderAgree) {
  auto writer = SafetensorsWriter::create(path_, {.name = "logits", .shape = {2, 3}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::vector<float> values{1.0f, -2.0f, 3.5f, 0.0f, 1e-20f, INFINITY};
  ASSERT_TRUE(writer->append(std::span(values).first(4)).ok());
  ASSERT_TRUE(writer->append(std::span(values).last(2)).ok());
  ASSERT_TRUE(writer->close().ok());
  const auto file = SafetensorsFile::open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  const TensorView& view = file->tensors().at("logits");
  EXPECT_EQ(view.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::memcmp(view.data, values.data(), view.size_bytes()), 0);
}

TEST_F(SafetensorsTest, WriterRefusesAnIncompleteTensorAndABadPath) {
  auto writer = SafetensorsWriter::create(path_, {.name = "logits", .shape = {2, 3}});
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(writer->append(std::vector<float>(5)).ok());
  EXPECT_FALSE(writer->close().ok());
  EXPECT_FALSE(SafetensorsWriter::create("/nonexistent/x", {.name = "x", .shape = {1}}).ok());
}

TEST_F(SafetensorsTest, RefusesTruncatedFiles) {
  EXPECT_TRUE(absl::IsNotFound(SafetensorsFile::open(path_).status()));
  write("");
  expect_refused("expected a safetensors file of at least 8 bytes, found 0");
  write("1234567");
  expect_refused("at least 8 bytes, found 7");
  write("{}", 0, 3);
  expect_refused("header: expected at most 2 bytes, found a length of 3");
  write("{}", 0, UINT64_MAX);
  expect_refused("found a length of 18446744073709551615");
  write("{}", 0, UINT64_MAX - 7);  // 8 + length wraps around to 0
  expect_refused("found a length of 18446744073709551608");
  write("{}", 0, 0);
  expect_refused("header: expected JSON");
  expect_refused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7, "within the file's 7 bytes");
}

TEST_F(SafetensorsTest, RefusesHeadersThatAreNoHeader) {
  expect_refused("[]", 0, "header: expected a JSON object, found []");
  expect_refused("{\"a\":", 0, "header: expected JSON");
  expect_refused("{\"a\":1}", 0, "tensor a: expected an object, found 1");
  expect_refused("{\"a\\nb\":1}", 0, "tensor a\\nb: expected an object");
  expect_refused(std::string(1'000'000, '['), 0, "expected JSON nested at most 64 deep, found 1000000");
  expect_refused("{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}", 0, "nested at most");
  const std::string entry = R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  expect_refused("{\"a\":" + entry + ",\"a\":" + entry + "}", 4, "tensor a: expected once in the header, found twice");
}

TEST_F(SafetensorsTest, RefusesEntriesThatLie) {
  const auto entry = [&](const std::string& dtype, const std::string& shape, const std::string& offsets,
                         const std::string& expected) {
    expect_refused("{\"a\":{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}", 16,
                   expected);
  };
  entry("\"F8_E4M3\"", "[16]", "[0,16]", "tensor a: dtype: expected F64, F32, F16, BF16 or an integer type, found");
  entry("7", "[16]", "[0,16]", "tensor a: dtype");
  entry("null", "[16]", "[0,16]", "tensor a: dtype");
  entry("\"F32\"", "4", "[0,16]", "tensor a: shape: expected a list, found 4");
  entry("\"F32\"", "[-4]", "[0,16]", "tensor a: shape: expected sizes of 0 or more, found [-4]");
  entry("\"F32\"", "[4.0]", "[0,16]", "tensor a: shape: expected sizes");
  entry("\"F32\"", "[\"4\"]", "[0,16]", "tensor a: shape: expected sizes");
  entry("\"F32\"", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,4]", "[0,16]", "at most 16 dimensions, found 17");
  entry("\"F32\"", "[18446744073709551615]", "[0,16]", "tensor a: shape");
  entry("\"F32\"", "[4294967296,4294967296]", "[0,16]", "more bytes than fit 64 bits");
  entry("\"F32\"", "[4294967296,4294967296,0]", "[0,16]", "more bytes than fit 64 bits");
  entry("\"F32\"", "[4611686018427387905]", "[0,4]", "tensor a: shape");  // times 4 wraps around to 4
  entry("\"F32\"", "[4]", "[0,15]", "data_offsets: expected 16 bytes for float32 of shape [4], found 15");
  entry("\"F32\"", "[4]", "[16,0]", "data_offsets: expected [begin, end], found [16,0]");
  entry("\"F32\"", "[4]", "[0]", "data_offsets: expected [begin, end]");
  entry("\"F32\"", "[4]", "[-16,0]", "data_offsets: expected [begin, end]");
  entry("\"F32\"", "[4]", "{}", "data_offsets: expected [begin, end]");
  entry("\"F32\"", "[4]", "[16,32]", "within the file's 16 bytes of data, found 32");
  entry("\"F32\"", "[4]", "[18446744073709551600,18446744073709551615]", "within the file's 16 bytes");
  entry("\"F32\"", "[2]", "[8,16]", "tensor a: data_offsets: expected to begin at 0");
  entry("\"F32\"", "[2]", "[0,8]", "expected 8 bytes of tensors, found 16");
}

TEST_F(SafetensorsTest, RefusesOverlapsAndHoles) {
  const auto two = [&](const char* a, const char* b, const std::string& expected) {
    expect_refused(std::string(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)") + a +
                       R"(},"b":{"dtype":"F32","shape":[2],"data_offsets":)" + b + "}}",
                   20, expected);
  };
  two("[0,8]", "[4,12]", "tensor b: data_offsets: expected to begin at 8, where the tensor before it ends, found 4");
  two("[0,8]", "[0,8]", "data_offsets: expected to begin at 8");
  two("[0,8]", "[12,20]", "tensor b: data_offsets: expected to begin at 8");
}

}  // namespace
}  // namespace onepass
