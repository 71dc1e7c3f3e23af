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
  /// The logit without value, in natural units; −∞ for none.
  let sink: Double

  init(_ operands: AttentionOperands, _ descriptor: AttentionDescriptor, batch: Int, head: Int) {
    let shape = descriptor.shape
    let index = batch * shape.queryHeadCount + head
    slope = Double(operands.alibiSlopes?[index] ?? 0)
    sink = Double(operands.sinks?[index] ?? -.infinity)
    firstPosition = shape.keyValueLength - shape.queryLength
    blocks = descriptor.options.blocks
    guard let mask = operands.mask else {
      (elements, rowStride, keyStride) = (nil, 0, 0)
      return
    }
    let (rows, keys) = (mask.shape[2], mask.shape[3])
    rowStride = rows == 1 ? 0 : keys
    keyStride = keys == 1 ? 0 : 1
    let isBoolean = mask.elementType == .int8
    elements = (0..<rows).flatMap { row -> [Double] in
      let start = mask.broadcastOffset(batch: batch, head: head, row: row)
      return (0..<keys).map { key -> Double in
        let value = mask.view.float(atOffset: start + key * mask.strides[3])
        if isBoolean { return value == 0 ? -.infinity : 0 }
        return value <= LogitOperands.hidden ? -.infinity : Double(value)
      }
    }
  }

  /// What is added to a logit, in powers of two; nil where the key is hidden.
  func addend(row: Int, key: Int) -> Double? {
    if let blocks, !blocks.shows(row: row, key: key) { return nil }
    let element = elements?[row * rowStride + key * keyStride] ?? 0
    guard element > -.infinity else { return nil }
    let distance = Double((firstPosition + row - key).magnitude)
    return (element - slope * distance) * log2(M_E)
  }

  /// Refuses elements that no mask may have.
  static func check(_ mask: AttentionOperands.Operand?) throws(AttentionError) {
    guard let mask, mask.elementType != .int8 else { return }
    for batch in 0..<mask.shape[0] {
      for head in 0..<mask.shape[1] {
        for row in 0..<mask.shape[2] {
          for key in 0..<mask.shape[3]
          where !(mask.view[batch, head, row, key] < -LogitOperands.hidden) {
            throw LogitOperands.error(mask, batch: batch, head: head, row: row, key: key)
          }
        }
      }
    }
  }
}
