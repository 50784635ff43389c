// The prefix cache: which token sequences have their K and V in pages already (SGLang's RadixAttention: Zheng et al.,
// "SGLang: Efficient Execution of Structured Language Model Programs", 2024, section 3).
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kv_cache/page_allocator.h"

namespace onepass {

// A tree whose edges are runs of whole pages: a path from the root spells the tokens of a prefix, and holds the page of
// each page_size of them. What two prefixes share is there once. Prefixes of different salts share nothing, so that
// one tenant cannot learn by the clock what another has asked.
//
// The tree holds the pages of its nodes in the allocator's books. Requests that read them hold a lock on the deepest
// node that they use; a locked node and all above it stay. The rest goes by eviction, least recently used leaves first,
// page by page from their ends. Not thread-safe: the scheduler's thread alone calls it.
class RadixTree {
 public:
  class Node;
  // A lock on a prefix; null locks nothing. Whoever gets one releases it once.
  using Lock = Node*;

  RadixTree(PageAllocator& pages, int page_size);
  ~RadixTree();
  RadixTree(const RadixTree&) = delete;
  RadixTree& operator=(const RadixTree&) = delete;

  struct Match {
    std::vector<PageId> pages;  // of the first pages.size() * page_size tokens
    Lock lock = nullptr;        // on them
  };
  // The longest cached prefix of `tokens` in whole pages, locked and counted as used now.
  Match match(std::span<const int32_t> tokens, const std::string& salt = {});
  // The same length in tokens, without a lock and without counting as use: for the order of a queue.
  int64_t cached_tokens(std::span<const int32_t> tokens, const std::string& salt = {}) const;

  // Takes over the pages of a prefix that request `owner` has computed: `tokens`, a whole number of pages, in `pages`,
  // of which the first num_shared are the tree's own, under `lock`. A page that the tree has for the same tokens
  // already is freed. Returns the tree's pages for all of `tokens` with a lock that takes the place of `lock`.
  // REQUIRES: `owner` owns pages[num_shared ..].
  Match insert(std::span<const int32_t> tokens, std::span<const PageId> pages, int num_shared, int owner, Lock lock,
               const std::string& salt = {});

  void release(Lock lock);

  // Frees `count` pages, or all that no lock holds when they are fewer; returns how many.
  int evict(int count);

  // Drops all nodes and leaves the allocator's books alone. For when these cannot be trusted. Locks are void.
  void forget();

  int num_pages() const { return num_pages_; }
  // Pages that evict() could free now.
  int num_evictable() const { return num_evictable_; }

  // Every page of the tree once, for PageAllocator::check.
  std::vector<PageId> pages() const;

  // Compares the tree's books with the tree; empty when they agree. O(tree).
  std::vector<std::string> check() const;

 private:
  using Children = absl::flat_hash_map<std::vector<int32_t>, std::unique_ptr<Node>>;

  std::vector<int32_t> first_page(std::span<const int32_t> tokens) const;
  // Pages of `tokens` that `node` shares.
  int common_pages(const Node& node, std::span<const int32_t> tokens) const;
  // Follows `tokens` from the salt's root as far as they are cached, splitting a node that is left midway.
  Node* walk(std::span<const int32_t> tokens, const std::string& salt, std::vector<PageId>& pages);
  // Cuts `node` after its first `count` pages: a new node above takes them; `node` keeps its locks and children.
  Node* split(Node* node, int count);
  void add_lock(Node* node, int change);
  void touch(Node* node);
  // Keeps leaves_ right after a change of the node's children, locks or age.
  void update_leaf(Node* node);
  void remove_root_if_empty(Node* root);

  PageAllocator& allocator_;
  const int page_size_;
  absl::flat_hash_map<std::string, std::unique_ptr<Node>> roots_;  // by salt; they hold no pages
  std::set<std::pair<uint64_t, Node*>> leaves_;                    // unlocked ones, least recently used first
  uint64_t clock_ = 0;
  int num_pages_ = 0;
  int num_evictable_ = 0;
};

}  // namespace onepass
