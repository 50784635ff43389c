#include "kv_cache/radix_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "kv_cache/request_table.h"

namespace onepass {
namespace {

using Tokens = std::vector<int32_t>;

Tokens range(int begin, int end) {
  Tokens tokens;
  for (int i = begin; i < end; ++i) tokens.push_back(i);
  return tokens;
}

class RadixTreeTest : public testing::Test {
 protected:
  // Pages for `tokens` as a request computes them, handed to the tree and let go.
  std::vector<PageId> cache(const Tokens& tokens, const std::string& salt = {}) {
    RadixTree::Match match = tree_.match(tokens, salt);
    const int shared = static_cast<int>(match.pages.size());
    const int count = static_cast<int>(tokens.size()) / kPageSize;
    EXPECT_TRUE(allocator_.allocate(/*owner=*/0, count - shared, match.pages));
    match = tree_.insert(std::span(tokens).first(static_cast<size_t>(count) * kPageSize), match.pages, shared, 0,
                         match.lock, salt);
    tree_.release(match.lock);
    EXPECT_EQ(tree_.check(), std::vector<std::string>());
    return match.pages;
  }

  static constexpr int kPageSize = 4;
  PageAllocator allocator_{33};
  RadixTree tree_{allocator_, kPageSize};
};

TEST_F(RadixTreeTest, FindsWholePagesOfTheLongestPrefix) {
  const std::vector<PageId> pages = cache(range(0, 12));
  EXPECT_EQ(tree_.num_pages(), 3);
  Tokens other = range(0, 11);
  other.push_back(99);  // differs in the third page
  RadixTree::Match match = tree_.match(other);
  EXPECT_EQ(match.pages, std::vector<PageId>(pages.begin(), pages.begin() + 2));
  tree_.release(match.lock);
  EXPECT_EQ(tree_.cached_tokens(range(0, 12)), 12);
  EXPECT_EQ(tree_.cached_tokens(range(0, 7)), 4);
  EXPECT_EQ(tree_.cached_tokens(range(0, 3)), 0);
  EXPECT_EQ(tree_.cached_tokens(range(1, 12)), 0);
  EXPECT_EQ(tree_.match({}).lock, nullptr);
  EXPECT_EQ(tree_.check(), std::vector<std::string>());
}

TEST_F(RadixTreeTest, SaltsShareNothing) {
  const std::vector<PageId> a = cache(range(0, 8), "a"), b = cache(range(0, 8), "b");
  EXPECT_NE(a, b);
  EXPECT_EQ(tree_.cached_tokens(range(0, 8)), 0);
  EXPECT_EQ(tree_.num_pages(), 4);
}

TEST_F(RadixTreeTest, KeepsOneCopyOfWhatTwoRequestsComputed) {
  std::vector<PageId> first, second;
  ASSERT_TRUE(allocator_.allocate(1, 2, first));
  ASSERT_TRUE(allocator_.allocate(2, 3, second));
  const RadixTree::Match one = tree_.insert(range(0, 8), first, 0, 1, nullptr);
  const RadixTree::Match two = tree_.insert(range(0, 12), second, 0, 2, nullptr);
  EXPECT_EQ(one.pages, first);
  EXPECT_EQ(two.pages, (std::vector<PageId>{first[0], first[1], second[2]}));
  EXPECT_EQ(tree_.num_pages(), 3);
  EXPECT_EQ(allocator_.num_free(), 32 - 3);
  tree_.release(one.lock);
  EXPECT_EQ(tree_.num_evictable(), 0);  // the second one's lock holds the path
  tree_.release(two.lock);
  EXPECT_EQ(tree_.num_evictable(), 3);
}

TEST_F(RadixTreeTest, EvictsTheLeastRecentlyUsedFromTheEnd) {
  cache(range(0, 16));
  Tokens branch = range(0, 8);
  branch.insert(branch.end(), {100, 101, 102, 103, 104, 105, 106, 107});
  cache(branch);  // used last
  EXPECT_EQ(tree_.num_pages(), 6);
  EXPECT_EQ(tree_.evict(1), 1);
  EXPECT_EQ(tree_.cached_tokens(range(0, 16)), 12);
  EXPECT_EQ(tree_.cached_tokens(branch), 16);
  const RadixTree::Match held = tree_.match(range(0, 12));
  EXPECT_EQ(tree_.evict(100), 2);  // the branch; what is held stays
  EXPECT_EQ(tree_.cached_tokens(range(0, 16)), 12);
  EXPECT_EQ(tree_.cached_tokens(branch), 8);
  tree_.release(held.lock);
  EXPECT_EQ(tree_.evict(100), 3);
  EXPECT_EQ(tree_.num_pages(), 0);
  EXPECT_EQ(allocator_.num_free(), 32);
  EXPECT_EQ(tree_.check(), std::vector<std::string>());
}

// Random requests over allocator, table and tree, against a plain list of what must be cached: after each operation
// every page is in one state, every prefix is found where it was put, and nothing that is in use has gone.
class RadixTreeModel {
 public:
  RadixTreeModel(int page_size, uint32_t seed)
      : page_size_(page_size),
        random_(seed),
        allocator_(kPages),
        table_(kRequests, kPages),
        tree_(allocator_, page_size) {}

  void run(int operations) {
    for (int i = 0; i < operations && !testing::Test::HasFailure(); ++i) {
      step();
      check();
    }
    while (!requests_.empty()) finish(requests_.begin()->first);
    check();
    EXPECT_EQ(tree_.evict(kPages), static_cast<int>(model_.size()));
    EXPECT_EQ(allocator_.num_free(), allocator_.capacity());
    EXPECT_GT(hits_, operations / 50);  // the texts do share prefixes
    EXPECT_GT(evicted_, operations / 50);
  }

 private:
  static constexpr int kPages = 41, kRequests = 6;

  struct Request {
    Tokens tokens;
    std::string salt;
    RadixTree::Lock lock = nullptr;
  };
  using Prefix = std::pair<std::string, Tokens>;  // salt and tokens, whole pages

  int draw(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }

  void step() {
    const int choice = draw(10);
    if (choice < 4) {
      arrive();
    } else if (choice < 5) {
      evict(1 + draw(6));
    } else if (!requests_.empty()) {
      const int slot = std::next(requests_.begin(), draw(static_cast<int>(requests_.size())))->first;
      if (choice < 6) {
        insert(slot);
      } else if (choice < 8) {
        finish(slot);
      } else {
        grow(slot);
      }
    }
  }

  void arrive() {
    const int slot = table_.acquire();
    if (slot < 0) return;
    Request request;
    request.salt = draw(4) == 0 ? "tenant" : "";
    const int pages = 1 + draw(6);
    extend(request.tokens, pages * page_size_ + draw(page_size_));
    RadixTree::Match match = tree_.match(request.tokens, request.salt);
    EXPECT_EQ(match.pages, cached(request));
    hits_ += match.pages.empty() ? 0 : 1;
    request.lock = match.lock;
    table_.append(slot, match.pages, /*shared=*/true);
    requests_[slot] = request;
    if (!fill(slot)) finish(slot);
  }

  // Few different tokens: many prefixes are shared, and part at any place.
  void extend(Tokens& tokens, int count) {
    for (int i = 0; i < count; ++i) tokens.push_back(draw(4 * page_size_) == 0 ? 1 : 0);
  }

  // Pages for all of the request's tokens.
  bool fill(int slot) {
    const Request& request = requests_[slot];
    const int wanted = (static_cast<int>(request.tokens.size()) + page_size_ - 1) / page_size_;
    const int missing = wanted - static_cast<int>(table_.pages(slot).size());
    if (missing > allocator_.num_free()) evict(missing - allocator_.num_free());
    std::vector<PageId> pages;
    if (!allocator_.allocate(slot, missing, pages)) return false;
    table_.append(slot, pages);
    return true;
  }

  void grow(int slot) {
    Tokens& tokens = requests_[slot].tokens;
    const size_t before = tokens.size();
    extend(tokens, 1 + draw(2 * page_size_));
    if (!fill(slot)) tokens.resize(before);
  }

  // The whole pages of the request become the tree's.
  void insert(int slot) {
    Request& request = requests_[slot];
    const std::vector<PageId> row(table_.pages(slot).begin(), table_.pages(slot).end());
    const int count = std::min(static_cast<int>(request.tokens.size()) / page_size_, static_cast<int>(row.size()));
    const std::span<const PageId> whole = std::span(row).first(count);
    const std::vector<PageId> known = cached(request);
    const RadixTree::Match match =
        tree_.insert(std::span<const int32_t>(request.tokens).first(static_cast<size_t>(count) * page_size_), whole,
                     table_.num_shared_pages(slot), slot, request.lock, request.salt);
    request.lock = match.lock;
    const std::vector<Prefix> all = prefixes(request, count);
    ASSERT_EQ(match.pages.size(), all.size());
    for (int i = 0; i < count; ++i) {
      EXPECT_EQ(match.pages[i], i < static_cast<int>(known.size()) ? known[i] : row[i]);
      model_[all[i]] = match.pages[i];
    }
    table_.truncate(slot, 0);
    table_.set_num_shared_pages(slot, 0);
    table_.append(slot, match.pages, /*shared=*/true);
    table_.append(slot, std::span(row).subspan(count));
  }

  // Done or cancelled: what it did not hand over is free.
  void finish(int slot) {
    if (draw(2) == 0) insert(slot);
    Request& request = requests_[slot];
    allocator_.free(slot, table_.pages(slot).subspan(table_.num_shared_pages(slot)));
    tree_.release(request.lock);
    table_.truncate(slot, 0);
    table_.set_num_shared_pages(slot, 0);
    table_.release(slot);
    requests_.erase(slot);
  }

  void evict(int count) {
    const int evictable = tree_.num_evictable();
    EXPECT_EQ(evictable, static_cast<int>(model_.size() - held().size()));
    EXPECT_EQ(tree_.evict(count), std::min(count, evictable));
    evicted_ += std::min(count, evictable);
    const std::vector<PageId> left = tree_.pages();
    const std::set<PageId> still(left.begin(), left.end());
    const std::set<Prefix> in_use = held();
    for (auto it = model_.begin(); it != model_.end();) {
      if (still.contains(it->second)) {
        ++it;
        continue;
      }
      EXPECT_FALSE(in_use.contains(it->first)) << "a page in use was evicted";
      it = model_.erase(it);
    }
    EXPECT_EQ(model_.size(), still.size());
  }

  // The pages that the model expects a match to find.
  std::vector<PageId> cached(const Request& request) const {
    std::vector<PageId> pages;
    for (const Prefix& prefix : prefixes(request, static_cast<int>(request.tokens.size()) / page_size_)) {
      const auto found = model_.find(prefix);
      if (found == model_.end()) break;
      pages.push_back(found->second);
    }
    return pages;
  }

  std::vector<Prefix> prefixes(const Request& request, int count) const {
    std::vector<Prefix> all;
    for (int i = 1; i <= count; ++i) {
      all.emplace_back(request.salt, Tokens(request.tokens.begin(), request.tokens.begin() + i * page_size_));
    }
    return all;
  }

  // Prefixes that requests read now.
  std::set<Prefix> held() const {
    std::set<Prefix> all;
    for (const auto& [slot, request] : requests_) {
      for (Prefix& prefix : prefixes(request, table_.num_shared_pages(slot))) all.insert(std::move(prefix));
    }
    return all;
  }

  void check() const {
    EXPECT_EQ(tree_.check(), std::vector<std::string>());
    std::vector<PageId> cached_pages = tree_.pages();
    const auto violations = allocator_.check(table_, cached_pages);
    EXPECT_TRUE(violations.empty()) << violations[0].message;
    EXPECT_EQ(cached_pages.size(), model_.size());
    EXPECT_EQ(tree_.num_pages(), static_cast<int>(model_.size()));
    for (const auto& [slot, request] : requests_) {
      const std::span<const PageId> row = table_.pages(slot);
      const std::vector<Prefix> all = prefixes(request, table_.num_shared_pages(slot));
      for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(row[i], model_.at(all[i]));
    }
  }

  const int page_size_;
  std::mt19937 random_;
  PageAllocator allocator_;
  RequestTable table_;
  RadixTree tree_;
  std::map<int, Request> requests_;
  std::map<Prefix, PageId> model_;
  int hits_ = 0, evicted_ = 0;
};

class RadixTreeModelTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(PageSizes, RadixTreeModelTest, testing::Values(1, 2, 3, 16, 64));

TEST_P(RadixTreeModelTest, AgreesWithAPlainListThroughRandomRequests) {
  for (uint32_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    RadixTreeModel(GetParam(), seed).run(1500);
    if (HasFailure()) break;
  }
}

}  // namespace
}  // namespace onepass
