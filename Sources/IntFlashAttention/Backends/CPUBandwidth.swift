internal import CAttentionKernels
internal import Synchronization

/// How fast memory can be read: what decoding is measured against.
package final class CPUBandwidth: Sendable {
  private let memory: CPUMemory
  private let region: CPUMemory.Region
  private let threadCount: Int
  private let sum = Atomic<UInt64>(0)
  /// Bytes that a pass reads.
  package let byteCount: Int

  private static let pieceLength = 1 << 20

  /// A buffer to be read by some threads, in pieces of a megabyte.
  ///
  /// - Throws: `AttentionError` with code `.outOfMemory`.
  package init(byteCount: Int, threadCount: Int) throws(AttentionError) {
    self.byteCount = CPUTileSizes.padded(max(byteCount, 512), to: 512)
    self.threadCount = threadCount
    var layout = CPUMemory.Layout()
    region = layout.take(self.byteCount)
    guard let memory = CPUMemory(layout, zeroed: true) else {
      throw AttentionError(.outOfMemory, "no memory for a buffer of \(byteCount) bytes")
    }
    self.memory = memory
  }

  /// Reads every byte once.
  package func read() {
    let pieces = CPUTileSizes.pieceCount(byteCount, Self.pieceLength)
    let base = unsafe memory.place(region, as: UInt8.self)
    ThreadPool.shared.run(itemCount: pieces, threads: threadCount) { piece, _ in
      let start = piece * Self.pieceLength
      let length = min(Self.pieceLength, byteCount - start)
      // Kept, so that the reading is not left out.
      sum.add(unsafe intfa_read_bytes(base + start, Int64(length)), ordering: .relaxed)
    }
  }
}
