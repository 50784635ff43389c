// Which page of the KV cache belongs to whom. Host-side bookkeeping only: no page's contents are touched.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace onepass {

using PageId = int32_t;

class RequestTable;

// At all times each page is in exactly one state: free, owned by one request, or held by the prefix cache (where any
// number of requests may read it). A fourth state, isolated, takes pages that an audit found wrong, so that a defect
// costs memory and not answers. Page 0 is reserved: the dummy request that pads captured batches owns it. Not
// thread-safe: the scheduler's thread alone calls it.
class PageAllocator {
 public:
  // Pages 0 .. num_pages-1 with page 0 reserved; num_pages >= 2.
  explicit PageAllocator(int num_pages);

  int num_pages() const { return static_cast<int>(states_.size()); }
  // Pages that requests can have in all (all but page 0 and isolated ones), and those free now.
  int capacity() const { return capacity_; }
  int num_free() const { return static_cast<int>(free_.size()); }

  // Gives `count` pages to the request in slot `owner` and appends them to `pages`; false, with nothing changed, when
  // fewer are free. Exhaustion is ordinary: the caller evicts, retracts or refuses.
  [[nodiscard]] bool allocate(int owner, int count, std::vector<PageId>& pages);

  // The reverse. REQUIRES: `owner` owns each of them.
  void free(int owner, std::span<const PageId> pages);

  // Moves pages from a request to the prefix cache, and from the prefix cache to the free list.
  // REQUIRES: `owner` owns each of them; the prefix cache holds each of them.
  void move_to_prefix_cache(int owner, std::span<const PageId> pages);
  void free_from_prefix_cache(std::span<const PageId> pages);

  // One page that is not where the books say.
  struct Violation {
    PageId page;
    std::string message;
  };

  // Compares the books with themselves and with what the requests of `table` and the prefix cache (`cached`, the pages
  // of its nodes, each once) really hold. Empty when every page is in exactly one state and nothing is leaked.
  // O(pages).
  std::vector<Violation> check(const RequestTable& table, std::span<const PageId> cached = {}) const;

  // Repairs what check() found: the pages leave circulation for good.
  void isolate(std::span<const Violation> violations);

  // Every page is free again, but page 0 and those isolated. For books that nothing refers to any more.
  void free_all();

 private:
  enum class State : uint8_t { kReserved, kFree, kOwned, kCached, kIsolated };
  struct PageState {
    State state = State::kFree;
    int owner = -1;  // slot of the owning request when kOwned
  };

  static const char* name(State state);

  std::vector<PageState> states_;
  std::vector<PageId> free_;  // a stack: pages freed last are handed out first, while they are warm
  int capacity_;
};

}  // namespace onepass
