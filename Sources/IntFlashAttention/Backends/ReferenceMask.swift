#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#else
import Darwin
#endif

/// What the operands beside query, key and value do to the logits of one query head.
struct ReferenceMask: Sendable {
  /// Elements of the mask, [rows or 1][keys or 1], false as −∞; nil for none.
  private let elements: [Double]?
  private let rowStride: Int
  private let keyStride: Int
  private let slope: Double
  /// Key position of query row 0.
  private let firstPosition: Int
  private let blocks: VisibleBlocks?
  /// Row of the blocks of query row 0.
  private let firstBlockRow: Int
  /// The logit without value, in natural units; −∞ for none.
  let sink: Double

  init(_ operands: AttentionOperands, _ descriptor: AttentionDescriptor, batch: Int, head: Int) {
    let shape = descriptor.shape
    let index = batch * shape.queryHeadCount + head
    slope = Double(operands.alibiSlopes?[index] ?? 0)
    sink = Double(operands.sinks?[index] ?? -.infinity)
    firstPosition = shape.keyValueLength - shape.queryLength
    firstBlockRow = 0
    blocks = descriptor.options.blocks
    (elements, rowStride, keyStride) = Self.elements(
      operands.mask,
      batch: batch,
      head: head,
      rows: 0..<shape.queryLength,
      keyCount: shape.keyValueLength
    )
  }

  /// What a call on caches does to one head of sequence `index`, where blocks count positions.
  init(_ call: KVCacheCall, sequence index: Int, head: Int) {
    let part = call.parts[index]
    let place = index * call.queryHeadCount + head
    slope = Double(call.alibiSlopes?[place] ?? 0)
    sink = Double(call.sinks?[place] ?? -.infinity)
    firstPosition = part.count - part.queries.count
    firstBlockRow = firstPosition
    blocks = call.options.blocks
    (elements, rowStride, keyStride) = Self.elements(
      call.mask,
      batch: 0,
      head: head,
      rows: part.queries,
      keyCount: part.count
    )
  }

  /// Rows of a head of a mask, or the one that stands for all, and their strides.
  private static func elements(
    _ mask: AttentionOperands.Operand?,
    batch: Int,
    head: Int,
    rows: Range<Int>,
    keyCount: Int
  ) -> ([Double]?, Int, Int) {
    guard let mask else { return (nil, 0, 0) }
    let rows = mask.shape[2] == 1 ? 0..<1 : rows
    let keys = mask.shape[3] == 1 ? 1 : keyCount
    let isBoolean = mask.elementType == .int8
    let elements = rows.flatMap { row -> [Double] in
      let start = mask.broadcastOffset(batch: batch, head: head, row: row)
      return (0..<keys).map { key -> Double in
        let value = mask.view.float(atOffset: start + key * mask.strides[3])
        if isBoolean { return value == 0 ? -.infinity : 0 }
        return value <= LogitOperands.hidden ? -.infinity : Double(value)
      }
    }
    return (elements, mask.shape[2] == 1 ? 0 : keys, mask.shape[3] == 1 ? 0 : 1)
  }

  /// What is added to a logit, in powers of two; nil where the key is hidden.
  func addend(row: Int, key: Int) -> Double? {
    if let blocks, !blocks.shows(row: firstBlockRow + row, key: key) { return nil }
    let element = elements?[row * rowStride + key * keyStride] ?? 0
    guard element > -.infinity else { return nil }
    let distance = Double((firstPosition + row - key).magnitude)
    return (element - slope * distance) * log2(M_E)
  }

  /// Refuses elements that no mask may have, of these rows and keys where there are more.
  static func check(
    _ mask: AttentionOperands.Operand?,
    rows: Range<Int>? = nil,
    keys: Int? = nil
  ) throws(AttentionError) {
    guard let mask, mask.elementType != .int8 else { return }
    for batch in 0..<mask.shape[0] {
      for head in 0..<mask.shape[1] {
        for row in (rows ?? 0..<mask.shape[2]).clamped(to: 0..<mask.shape[2]) {
          for key in 0..<min(keys ?? mask.shape[3], mask.shape[3])
          where !(mask.view[batch, head, row, key] < -LogitOperands.hidden) {
            throw LogitOperands.error(mask, batch: batch, head: head, row: row, key: key)
          }
        }
      }
    }
  }
}
