// A Status can carry payloads, in Cords, and Debian's archive of Cord cannot go into a shared library: its thread-local
// variables are compiled for programs alone. No Status here has a payload, so what Status asks of Cord is never called;
// these definitions keep the archive out. An Abseil whose Status asks for more is found at link time
// (-Wl,--no-undefined).
#include <cstdlib>

#include "absl/strings/cord.h"
#include "absl/strings/internal/cordz_info.h"

namespace absl {
ABSL_NAMESPACE_BEGIN

void Cord::DestroyCordSlow() { std::abort(); }
bool Cord::EqualsImpl(const Cord&, size_t) const { std::abort(); }
Cord::operator std::string() const { std::abort(); }
void Cord::InlineRep::UnrefTree() { std::abort(); }

namespace cord_internal {
void CordzInfo::MaybeTrackCordImpl(InlineData&, const InlineData&, MethodIdentifier) { std::abort(); }
}  // namespace cord_internal

ABSL_NAMESPACE_END
}  // namespace absl
