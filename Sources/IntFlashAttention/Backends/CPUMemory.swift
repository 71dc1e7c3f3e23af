#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// A block of memory with an owner, in regions of equal parts: one part per head or per thread.
@safe
final class CPUMemory: @unchecked Sendable {
  // Sendable: those who hold it write parts that do not overlap.
  private let base: UnsafeMutableRawPointer
  let byteCount: Int

  /// A part of the block that has `stride` bytes per head.
  struct Region: Sendable {
    let offset: Int
    let stride: Int
  }

  /// What a block shall have: regions are added, then the memory is taken.
  ///
  /// More than any machine has stays that: the count does not overflow.
  struct Layout: Sendable {
    private(set) var byteCount = 0

    mutating func take(_ bytes: Int, parts: Int = 1) -> Region {
      let stride = CPUTileSizes.padded(bytes, to: 64)
      let region = Region(offset: byteCount, stride: stride)
      let (added, overflow) = stride.multipliedReportingOverflow(by: parts)
      let (sum, sumOverflow) = byteCount.addingReportingOverflow(added)
      byteCount = overflow || sumOverflow ? Int.max : sum
      return region
    }
  }

  /// Takes the memory; nil where there is none.
  ///
  /// What is not zeroed is not touched either.
  init?(_ layout: Layout, zeroed: Bool) {
    byteCount = max(layout.byteCount, 64)
    guard let base = unsafe AlignedMemory.allocate(byteCount: byteCount, zeroed: zeroed) else {
      return nil
    }
    unsafe self.base = base
  }

  /// The part of a region that belongs to one head.
  func place<T>(_ region: Region, _ head: Int = 0, as type: T.Type = Float.self)
    -> UnsafeMutablePointer<T>
  {
    unsafe (base + region.offset + head * region.stride).assumingMemoryBound(to: type)
  }

  func copyBytes(from other: CPUMemory) {
    unsafe memcpy(base, other.base, min(byteCount, other.byteCount))
  }

  deinit { unsafe free(base) }
}
