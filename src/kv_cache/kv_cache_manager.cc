#include "kv_cache/kv_cache_manager.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/strings.h"

namespace onepass {
namespace {

// With the prefix cache off, sequences find nobody else's pages; this salt is no request's.
constexpr std::string_view kPrivateSalt{"\0private", 8};

}  // namespace

KvCacheManager::KvCacheManager(RequestTable& table, int num_pages, int page_size, bool prefix_caching)
    : table_(table),
      page_size_(page_size),
      prefix_caching_(prefix_caching),
      pages_(num_pages),
      tree_(pages_, page_size),
      sequences_(table.max_requests()) {}

int KvCacheManager::cached_tokens(std::span<const int32_t> tokens, const std::string& salt) const {
  if (!prefix_caching_ || tokens.empty()) return 0;
  return static_cast<int>(tree_.cached_tokens(tokens.first(tokens.size() - 1), salt));
}

std::optional<KvCacheManager::Opened> KvCacheManager::open(std::span<const int32_t> tokens, const std::string& salt) {
  ONEPASS_CHECK(!tokens.empty());
  const int slot = table_.acquire();
  if (slot < 0) return std::nullopt;
  Sequence& sequence = sequences_[slot];
  sequence = {.salt = prefix_caching_ ? salt : str_cat(kPrivateSalt, slot)};
  if (!prefix_caching_) return Opened{.slot = slot, .cached_tokens = 0};
  RadixTree::Match match = tree_.match(tokens.first(tokens.size() - 1), salt);
  sequence.lock = match.lock;
  table_.append(slot, match.pages, /*shared=*/true);
  return Opened{.slot = slot, .cached_tokens = static_cast<int>(match.pages.size()) * page_size_};
}

int KvCacheManager::extend_from_cache(int slot, std::span<const int32_t> tokens, int num_computed) {
  Sequence& sequence = sequences_[slot];
  const int row = static_cast<int>(table_.pages(slot).size());
  // Pages of its own, or one that is partly written: it has gone its own way.
  if (!prefix_caching_ || num_computed != row * page_size_ || row != table_.num_shared_pages(slot)) return num_computed;
  const std::span<const int32_t> wanted = tokens.first(tokens.size() - 1);
  if (tree_.cached_tokens(wanted, sequence.salt) <= num_computed) return num_computed;
  RadixTree::Match match = tree_.match(wanted, sequence.salt);
  tree_.release(sequence.lock);
  sequence.lock = match.lock;
  table_.append(slot, std::span(match.pages).subspan(row), /*shared=*/true);
  return static_cast<int>(match.pages.size()) * page_size_;
}

void KvCacheManager::evict(int count) {
  if (count > 0) num_evicted_ += tree_.evict(count);
}

bool KvCacheManager::reserve(int slot, int num_tokens) {
  const int missing = (num_tokens + page_size_ - 1) / page_size_ - static_cast<int>(table_.pages(slot).size());
  if (missing <= 0) return true;
  if (missing > num_available()) return false;
  evict(missing - pages_.num_free());
  std::vector<PageId> fresh;
  ONEPASS_CHECK(pages_.allocate(slot, missing, fresh));
  table_.append(slot, fresh);
  return true;
}

void KvCacheManager::insert(int slot, std::span<const int32_t> tokens, int count) {
  Sequence& sequence = sequences_[slot];
  const std::vector<PageId> row(table_.pages(slot).begin(), table_.pages(slot).end());
  const RadixTree::Match match =
      tree_.insert(tokens.first(static_cast<size_t>(count) * page_size_), std::span(row).first(count),
                   table_.num_shared_pages(slot), slot, sequence.lock, sequence.salt);
  sequence.lock = match.lock;
  table_.truncate(slot, 0);
  table_.append(slot, match.pages, /*shared=*/true);
  table_.append(slot, std::span(row).subspan(count));
}

void KvCacheManager::commit(int slot, std::span<const int32_t> tokens) {
  if (!prefix_caching_) return;
  const int count = whole_pages(tokens), shared = table_.num_shared_pages(slot);
  ONEPASS_CHECK_LE(count, static_cast<int>(table_.pages(slot).size()));
  if (count <= shared) return;
  // Steps that are planned may still write the sequence's pages: none is given up for a copy before close().
  if (tree_.cached_tokens(tokens, sequences_[slot].salt) > int64_t{shared} * page_size_) return;
  insert(slot, tokens, count);
}

std::optional<KvCacheManager::Fork> KvCacheManager::fork(int slot, std::span<const int32_t> tokens) {
  const int count = whole_pages(tokens), rest = static_cast<int>(tokens.size()) - count * page_size_;
  const int shared = table_.num_shared_pages(slot);
  ONEPASS_CHECK_LE(count, static_cast<int>(table_.pages(slot).size()));
  if (rest > 0 && num_available() < 1) return std::nullopt;
  if (count > shared) {
    // Somebody has the same pages in the cache beside this sequence's own: sharing those would mean giving up these.
    if (tree_.cached_tokens(tokens, sequences_[slot].salt) > int64_t{shared} * page_size_) return std::nullopt;
    insert(slot, tokens, count);
  }
  const int child = table_.acquire();
  if (child < 0) return std::nullopt;
  sequences_[child].salt = sequences_[slot].salt;
  RadixTree::Match match = tree_.match(tokens.first(static_cast<size_t>(count) * page_size_), sequences_[slot].salt);
  ONEPASS_CHECK_EQ(static_cast<int>(match.pages.size()), count);
  sequences_[child].lock = match.lock;
  table_.append(child, match.pages, /*shared=*/true);
  Fork fork{.slot = child, .copy = {}};
  if (rest > 0) {
    if (!reserve(child, static_cast<int>(tokens.size()))) {
      close(child, {});
      return std::nullopt;
    }
    fork.copy = {.from = table_.pages(slot)[count], .to = table_.pages(child)[count], .num_tokens = rest};
  }
  return fork;
}

void KvCacheManager::close(int slot, std::span<const int32_t> tokens) {
  Sequence& sequence = sequences_[slot];
  const int count = std::min(whole_pages(tokens), static_cast<int>(table_.pages(slot).size()));
  if (prefix_caching_ && count > table_.num_shared_pages(slot)) insert(slot, tokens, count);
  pages_.free(slot, table_.pages(slot).subspan(table_.num_shared_pages(slot)));
  table_.truncate(slot, 0);
  table_.release(slot);
  tree_.release(sequence.lock);
  sequence = {};
  if (!prefix_caching_) clear_prefix_cache();
}

void KvCacheManager::clear_prefix_cache() { tree_.evict(std::numeric_limits<int>::max()); }

std::vector<std::string> KvCacheManager::check() const {
  std::vector<std::string> wrong = tree_.check();
  for (PageAllocator::Violation& violation : pages_.check(table_, tree_.pages())) {
    wrong.push_back(std::move(violation.message));
  }
  return wrong;
}

std::vector<std::string> KvCacheManager::repair() {
  std::vector<std::string> wrong = check();
  for (const int slot : table_.used_slots()) wrong.push_back(str_cat("request slot ", slot, " is in use by nobody"));
  if (wrong.empty()) return wrong;
  pages_.isolate(pages_.check(table_, tree_.pages()));
  for (const int slot : table_.used_slots()) {
    table_.truncate(slot, 0);
    table_.release(slot);
  }
  sequences_.assign(sequences_.size(), {});
  tree_.forget();
  pages_.free_all();
  return wrong;
}

}  // namespace onepass
