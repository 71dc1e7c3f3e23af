// Names are those of the header, which documents them.
// swift-format-ignore-file: AlwaysUseLowerCamelCase, AllPublicDeclarationsHaveDocumentation
public import CIntFlashAttention
import IntFlashAttention

/// A rotary embedding behind a handle.
final class RotaryObject: Sendable {
  private let embedding: RotaryEmbedding

  init(_ embedding: RotaryEmbedding) { self.embedding = embedding }

  static func embedding(_ handle: OpaquePointer?) throws(AttentionError) -> RotaryEmbedding {
    unsafe try Handle.object(handle, "rotary", as: RotaryObject.self).embedding
  }

  /// As ``embedding(_:)``, or nil for NULL.
  static func optionalEmbedding(
    _ handle: OpaquePointer?
  ) throws(AttentionError) -> RotaryEmbedding? {
    unsafe handle == nil ? nil : try embedding(handle)
  }
}

extension RotaryEmbedding {
  init(_ pointer: UnsafePointer<intfa_rotary_angles>?) throws(AttentionError) {
    let angles = unsafe try CStruct.read(pointer, "angles", intfa_rotary_angles())
    let style: Style
    switch Int(unsafe angles.style) {
    case INTFA_ROTARY_HALF_SPLIT: style = .halfSplit
    case INTFA_ROTARY_INTERLEAVED: style = .interleaved
    default:
      throw AttentionError(
        .invalidArgument,
        "angles: style is \(unsafe angles.style), which is not one of intfa_rotary_style"
      )
    }
    let (dimension, count) = unsafe (Int(angles.rotary_dimension), Int(angles.position_count))
    guard unsafe angles.cosines != nil || angles.sines != nil else {
      try self.init(
        rotaryDimension: dimension,
        positionCount: count,
        base: unsafe angles.base.map { unsafe $0.pointee } ?? 10_000,
        style: style
      )
      return
    }
    guard dimension == 0, count == 0, unsafe angles.base == nil else {
      throw AttentionError(
        .invalidArgument,
        "angles: rotary_dimension \(dimension), position_count \(count) or base are given beside "
          + "tables, which have them; they must be 0 and NULL"
      )
    }
    let cosines = unsafe try CTensor.operand(angles.cosines, "cosines")
    let sines = unsafe try CTensor.operand(angles.sines, "sines")
    try self.init(cosines: cosines.view, sines: sines.view, style: style)
  }
}

@c @implementation
public func intfa_rotary_create(
  _ angles: UnsafePointer<intfa_rotary_angles>!,
  _ rotary: UnsafeMutablePointer<OpaquePointer?>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let target = unsafe try require(rotary, "rotary")
    let object = RotaryObject(unsafe try RotaryEmbedding(angles))
    unsafe target.pointee = Handle.make(object)
  }
}

@c @implementation
public func intfa_rotary_apply(
  _ rotary: OpaquePointer!,
  _ rows: UnsafePointer<intfa_tensor>!,
  _ first_position: Int64,
  _ output: UnsafePointer<intfa_tensor>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let rotary = unsafe try RotaryObject.embedding(rotary)
    let rows = unsafe try CTensor.operand(rows, "rows").batched("rows", rank: 4)
    let output = unsafe try CTensor.operand(output, "output").batched("output", rank: 4)
    try CTensor.requireOutput(output, "output", shape: rows.shape)
    let turned = try rotary.apply(to: rows.view, firstPosition: Int(first_position))
    CTensor.write(turned.view, to: output)
  }
}

@c @implementation
public func intfa_rotary_destroy(_ rotary: OpaquePointer!) {
  unsafe Handle.destroy(rotary, as: RotaryObject.self)
}
