// The KV cache as the scheduler sees it: sequences that share what they can and get pages as they grow (vLLM's
// KVCacheManager; SGLang's tree cache with its two pools).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kv_cache/page_allocator.h"
#include "kv_cache/radix_tree.h"
#include "kv_cache/request_table.h"

namespace onepass {

// K and V of the first num_tokens tokens of page `from` are to be copied to page `to`, in every layer.
struct PageCopy {
  PageId from = 0;
  PageId to = 0;
  int num_tokens = 0;
};

// Keeps the allocator, the rows of a request table and the prefix cache in step. A sequence is named by its slot in the
// table; its tokens stay with the caller. "Computed" tokens are those whose K and V are in the cache, or will be once
// the steps planned so far have run: a device runs steps in order, so that a later one may read what an earlier one
// writes, and a page that is freed and given away is overwritten only after all that was planned before has read it.
//
// Not thread-safe: the scheduler's thread alone calls it.
class KvCacheManager {
 public:
  // `table` outlives it and is changed by nobody else. Without `prefix_caching` nothing is kept of a sequence that has
  // been closed, and only fork() shares.
  KvCacheManager(RequestTable& table, int num_pages, int page_size, bool prefix_caching);

  int page_size() const { return page_size_; }
  bool prefix_caching() const { return prefix_caching_; }
  // Pages that sequences can have in all; those free now; those that could be, by eviction too.
  int capacity() const { return pages_.capacity(); }
  int num_free() const { return pages_.num_free(); }
  int num_available() const { return pages_.num_free() + tree_.num_evictable(); }
  int num_cached() const { return tree_.num_pages(); }
  int64_t num_evicted() const { return num_evicted_; }  // pages, since the start

  // Tokens of the longest cached prefix, at most all but one: the last one's logits are always wanted.
  int cached_tokens(std::span<const int32_t> tokens, const std::string& salt) const;

  // A slot for a sequence that begins with `tokens`, whose first pages are the longest cached prefix; nothing when all
  // slots are in use. Sequences share pages with those of the same salt only.
  struct Opened {
    int slot;
    int cached_tokens;
  };
  std::optional<Opened> open(std::span<const int32_t> tokens, const std::string& salt);

  // Takes over what the prefix cache has learnt of `tokens` meanwhile, when the sequence stands at the end of a page;
  // returns the number of tokens computed then.
  int extend_from_cache(int slot, std::span<const int32_t> tokens, int num_computed);

  // Pages that the sequence has, and tokens that it could hold if it got all that are available.
  int num_pages(int slot) const { return static_cast<int>(table_.pages(slot).size()); }
  int64_t max_tokens(int slot) const { return int64_t{num_pages(slot) + num_available()} * page_size_; }

  // Pages for the first `num_tokens` tokens; evicts as needed. False, with the sequence unchanged, when there are not
  // enough.
  [[nodiscard]] bool reserve(int slot, int num_tokens);

  // Offers the whole pages of `tokens` (computed ones) to the prefix cache, where others find them from now on. A page
  // that the cache has for the same tokens already stays the sequence's own until it is closed.
  void commit(int slot, std::span<const int32_t> tokens);

  // A second sequence with the same `tokens` (computed ones): whole pages are shared, the rest gets a page of its own,
  // into which `copy` (num_tokens 0: nothing) is to be made before either sequence goes on. Nothing when slots or pages
  // are short.
  struct Fork {
    int slot;
    PageCopy copy;
  };
  std::optional<Fork> fork(int slot, std::span<const int32_t> tokens);

  // Ends a sequence: what is known of it (`tokens`, computed ones) goes to the prefix cache, the rest is free.
  void close(int slot, std::span<const int32_t> tokens);

  // Frees all that no sequence uses.
  void clear_prefix_cache();

  // What is wrong with the books, a line each; empty when every page is in one state and nothing is leaked.
  std::vector<std::string> check() const;

  // check(), for a cache that no sequence uses; what is wrong is mended: the pages concerned leave circulation for
  // good, and the prefix cache starts anew. Returns what was wrong.
  std::vector<std::string> repair();

 private:
  struct Sequence {
    RadixTree::Lock lock = nullptr;
    std::string salt;
  };

  int whole_pages(std::span<const int32_t> tokens) const { return static_cast<int>(tokens.size()) / page_size_; }
  void evict(int count);
  // Hands the sequence's first `count` pages, which hold `tokens`, to the tree.
  void insert(int slot, std::span<const int32_t> tokens, int count);

  RequestTable& table_;
  const int page_size_;
  const bool prefix_caching_;
  PageAllocator pages_;
  RadixTree tree_;
  std::vector<Sequence> sequences_;  // by slot
  int64_t num_evicted_ = 0;
};

}  // namespace onepass
