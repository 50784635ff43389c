// A seeded mutator for fuzz tests: the same seed damages the same way on every machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace onepass {

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  // 0 .. bound-1; 0 for bound 0. (The standard distributions differ between libraries; this does not.)
  size_t below(size_t bound) { return bound == 0 ? 0 : random_() % bound; }

  // One to four edits of the bytes: bits flipped, ranges cut, doubled or overwritten, fragments put in, the end cut
  // off.
  std::string bytes(std::string text) {
    for (size_t edits = 1 + below(4); edits > 0; --edits) {
      const size_t at = below(text.size() + 1), count = std::min(text.size() - at, size_t{1} << below(8));
      switch (below(6)) {
        case 0:
          if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
          break;
        case 1:
          text.erase(at, count);
          break;
        case 2:
          text.insert(at, text.substr(below(text.size() + 1), count));
          break;
        case 3:
          for (size_t i = at; i < at + count; ++i) text[i] = static_cast<char>(random_());
          break;
        case 4:
          text.insert(at, fragment());
          break;
        default:
          if (below(4) == 0) text.resize(at);
      }
    }
    return text;
  }

  // One to three edits of the structure of a JSON text: values replaced, elements dropped, doubled or put elsewhere.
  std::string structure(const std::string& text) {
    nlohmann::json value = nlohmann::json::parse(text);
    for (size_t edits = 1 + below(3); edits > 0; --edits) {
      std::vector<nlohmann::json*> nodes;
      collect(value, nodes);
      nlohmann::json& node = *nodes[below(nodes.size())];
      switch (below(5)) {
        case 0: {  // swap with the value of another place (a copy: one may hold the other)
          const nlohmann::json other = *nodes[below(nodes.size())];
          node = other;
          break;
        }
        case 1:
          if (node.is_structured() && !node.empty()) {
            auto it = node.begin();
            std::advance(it, static_cast<std::ptrdiff_t>(below(node.size())));
            node.erase(it);
            break;
          }
          [[fallthrough]];
        case 2:
          if (node.is_number_integer()) {
            node = node.get<uint64_t>() + below(5) - 2;  // wraps around
            break;
          }
          [[fallthrough]];
        default:
          node = replacement();
      }
    }
    return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }

 private:
  static void collect(nlohmann::json& value, std::vector<nlohmann::json*>& nodes) {
    nodes.push_back(&value);
    if (!value.is_structured()) return;
    for (nlohmann::json& child : value) collect(child, nodes);
  }

  std::string fragment() {
    static const char* const kFragments[] = {"[",
                                             "]",
                                             "{",
                                             "}",
                                             "\"",
                                             ",",
                                             ":",
                                             "\\u0000",
                                             "\\ud800",
                                             "\xff\xfe",
                                             "null",
                                             "true",
                                             "1e999",
                                             "-1",
                                             "0",
                                             "NaN",
                                             "\n",
                                             "\\",
                                             "18446744073709551615",
                                             "Infinity",
                                             "../",
                                             "1e18",
                                             "[[[[[",
                                             "{\"a\":{",
                                             "\"a\":",
                                             "-0.0",
                                             "0e-0",
                                             "\xef\xbb\xbf"};
    return kFragments[below(std::size(kFragments))];
  }

  nlohmann::json replacement() {
    switch (below(16)) {
      case 0:
        return nullptr;
      case 1:
        return below(2) == 0;
      case 2:
        return -1;
      case 3:
        return 0;
      case 4:
        return UINT64_MAX - below(9);
      case 5:
        return INT64_MIN + static_cast<int64_t>(below(3));
      case 6:
        return uint64_t{1} << below(64);
      case 7:
        return std::ldexp(1.0, static_cast<int>(below(600)) - 300);
      case 8:
        return std::string(below(300), 'x');
      case 9:
        return std::string("a\nb\0c/../d", 10);
      case 10:
        return nlohmann::json::array();
      case 11:
        return nlohmann::json::object();
      case 12:
        return {uint64_t{1} << 32, uint64_t{1} << 32, 0};
      case 13: {
        nlohmann::json nested = 1;
        for (size_t depth = below(100); depth > 0; --depth) nested = nlohmann::json::array({std::move(nested)});
        return nested;
      }
      case 14:
        return static_cast<int64_t>(below(1000));
      default:
        return fragment();
    }
  }

  std::mt19937_64 random_;
};

}  // namespace onepass
