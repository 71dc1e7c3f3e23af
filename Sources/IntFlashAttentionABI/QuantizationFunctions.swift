// Names are those of the header, which documents them.
// swift-format-ignore-file: AlwaysUseLowerCamelCase, AllPublicDeclarationsHaveDocumentation
public import CIntFlashAttention
import IntFlashAttention

extension Quantizer {
  /// How the recipe of a precision treats one operand of attention.
  fileprivate init(
    _ precision: Precision,
    operand: intfa_operand_kind
  ) throws(AttentionError) {
    let recipe = precision.recipe
    switch Int(operand) {
    case INTFA_QUERY:
      if case .block(let rows) = recipe.queryCentering {
        throw AttentionError(
          .unsupported,
          "precision \(precision.rawValue) centres queries by blocks of \(rows) rows, which is not "
            + "done outside of attention"
        )
      }
      self.init(
        recipe.query,
        centers: recipe.queryCentering == .head,
        rotates: recipe.rotatesQueryAndKey
      )
    case INTFA_KEY:
      self.init(recipe.key, centers: recipe.centersKey, rotates: recipe.rotatesQueryAndKey)
    case INTFA_VALUE: self.init(recipe.value, rotates: recipe.rotatesValue)
    default:
      throw AttentionError(
        .invalidArgument,
        "operand is \(operand), which is not one of intfa_operand_kind"
      )
    }
  }
}

/// A quantised tensor, and its parts as C has them.
@safe
private final class QuantizedObject {
  let tensor: QuantizedTensor
  private let parts: [Int: Part]

  /// A part in memory that stays where it is.
  @safe
  private final class Part {
    let elementType: ElementType
    let numbers: UnsafeMutableBufferPointer<Float>
    let shape, strides: UnsafeMutableBufferPointer<Int64>

    init(_ elementType: ElementType, _ shape: [Int], _ numbers: [Float] = []) {
      self.elementType = elementType
      unsafe self.numbers = Self.copy(numbers)
      unsafe self.shape = Self.copy(shape.map(Int64.init))
      let strides = TensorGeometry.contiguousStrides(shape, elementType)
      unsafe self.strides = Self.copy(strides.map(Int64.init))
    }

    private static func copy<Number>(_ numbers: [Number]) -> UnsafeMutableBufferPointer<Number> {
      let copy = UnsafeMutableBufferPointer<Number>.allocate(capacity: numbers.count)
      _ = unsafe copy.initialize(from: numbers)
      return unsafe copy
    }

    deinit {
      unsafe numbers.deallocate()
      unsafe shape.deallocate()
      unsafe strides.deallocate()
    }
  }

  init(_ tensor: consuming QuantizedTensor) {
    var parts = [INTFA_CODES: Part(tensor.codes.elementType, tensor.shape)]
    for (name, part) in [
      (INTFA_SCALES, tensor.scales), (INTFA_MEANS, tensor.means), (INTFA_STEPS, tensor.steps),
      (INTFA_OFFSETS, tensor.offsets),
    ] as [(Int, QuantizedTensor.Part?)] {
      parts[name] = Part(.float32, part?.shape ?? [], part?.values ?? [])
    }
    self.parts = parts
    self.tensor = tensor
  }

  func describe(_ part: Int) throws(AttentionError) -> intfa_tensor {
    guard let found = parts[part] else {
      throw AttentionError(
        .invalidArgument,
        "part is \(part), which is not one of intfa_quantized_part"
      )
    }
    var result = unsafe intfa_tensor()
    unsafe result.element_type = found.elementType.cType
    unsafe result.data =
      part == INTFA_CODES
      ? UnsafeMutableRawPointer(tensor.codes.storage)
      : UnsafeMutableRawPointer(found.numbers.baseAddress)
    unsafe result.rank = Int64(found.shape.count)
    unsafe result.shape = UnsafePointer(found.shape.baseAddress)
    unsafe result.strides = UnsafePointer(found.strides.baseAddress)
    return unsafe result
  }
}

private func object(_ handle: OpaquePointer?) throws(AttentionError) -> QuantizedObject {
  unsafe try Handle.object(handle, "quantized", as: QuantizedObject.self)
}

@c @implementation
public func intfa_quantize(
  _ tensor: UnsafePointer<intfa_tensor>!,
  _ precision: UnsafePointer<CChar>!,
  _ operand: intfa_operand_kind,
  _ quantized: UnsafeMutablePointer<OpaquePointer?>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let target = unsafe try require(quantized, "quantized")
    let precision = unsafe try Precision(named: precision)
    let quantizer = try Quantizer(precision, operand: operand)
    let tensor = unsafe try CTensor.operand(tensor, "tensor").batched("tensor", rank: 4)
    let object = QuantizedObject(try quantizer.quantize(tensor.view))
    unsafe target.pointee = Handle.make(object)
  }
}

@c @implementation
public func intfa_quantized_get(
  _ quantized: OpaquePointer!,
  _ part: intfa_quantized_part,
  _ tensor: UnsafeMutablePointer<intfa_tensor>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let object = unsafe try object(quantized)
    unsafe try CStruct.write(try object.describe(Int(part)), to: tensor, "tensor")
  }
}

@c @implementation
public func intfa_quantized_is_rotated(
  _ quantized: OpaquePointer!,
  _ is_rotated: UnsafeMutablePointer<Int32>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let object = unsafe try object(quantized)
    let target = unsafe try require(is_rotated, "is_rotated")
    unsafe target.pointee = object.tensor.quantizer.rotates ? 1 : 0
  }
}

@c @implementation
public func intfa_dequantize(
  _ quantized: OpaquePointer!,
  _ output: UnsafePointer<intfa_tensor>!
) -> intfa_status {
  status { () throws(AttentionError) in
    let object = unsafe try object(quantized)
    let output = unsafe try CTensor.operand(output, "output").batched("output", rank: 4)
    try CTensor.requireOutput(output, "output", shape: object.tensor.shape)
    let values = try object.tensor.dequantized()
    CTensor.write(values.view, to: output)
  }
}

@c @implementation
public func intfa_quantized_destroy(_ quantized: OpaquePointer!) {
  unsafe Handle.destroy(quantized, as: QuantizedObject.self)
}
