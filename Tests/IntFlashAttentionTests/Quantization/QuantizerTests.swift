import AttentionTestSupport
import IntFlashAttention
import Testing

@Suite struct QuantizerTests {
  static let formats: [OperandFormat] = [
    .int8(.token), .int8(.block(7)), .int8(.tensor), .int8(.channel), .int4(.token),
    .int4(.block(32)), .int4(.tensor), .int4(.channel), .int4Clipped,
    .int4Progressive(tokens: 32, channels: 1), .int4Progressive(tokens: 1, channels: 16),
    .int4Progressive(tokens: 5, channels: 3), .float8(.token), .float8(.tensor),
    .float8(.channel), .float8(.block(10)),
  ]

  /// Half a step of the format, relative to the largest value that shares a scale.
  static func halfStep(_ format: OperandFormat) -> Float {
    switch format {
    case .int8: 0.5 / 127
    case .int4: 0.5 / 7
    // Clipping may cut 30 % off the largest; decoding adds the rounding of the INT8 code.
    case .int4Clipped: 0.3
    case .int4Progressive: 0.5 * 17 / 127 + 0.5 / 127
    case .float8: 0x1p-4
    case .float32, .bfloat16, .float16: 0
    }
  }

  @Test(arguments: formats, [false, true])
  func everyElementIsWithinHalfAStep(_ format: OperandFormat, _ transforms: Bool) throws {
    var random = TestRandom(seed: 9)
    let shape = [2, 2, 37, 24]
    let values = (0..<shape.reduce(1, *)).map { _ in random.normal() }
    let tensor = try Tensor(values, shape: shape)
    let quantizer = Quantizer(format, centers: transforms, rotates: transforms)
    let quantized = try quantizer.quantize(tensor.view)
    let restored = try quantized.dequantized().copyFloats()
    // Rotating back spreads the error of 8 channels, the largest block that divides 24.
    let spread: Float = transforms ? Float(8).squareRoot() : 1
    let largest: Float = 6
    for (a, b) in zip(restored, values) {
      #expect((a - b).magnitude <= Self.halfStep(format) * largest * spread * 1.01)
    }
    let report = try quantized.error(against: tensor.view)
    #expect(report.relativeL1 < 0.2 && report.cosine > 0.98)
  }

  @Test func codesAndScalesByHand() throws {
    let tensor = try Tensor([1, -2, 0.5, 0, 254, 127, 0, 0], shape: [1, 1, 4, 2])
    let token = try Quantizer(.int8(.token)).quantize(tensor.view)
    #expect(token.codes.copyFloats() == [64, -127, 127, 0, 127, 64, 0, 0])
    #expect(token.scales.values[0..<3] == [2.0 / 127, 0.5 / 127, 2])
    #expect(token.scales.shape == [1, 1, 4])
    let whole = try Quantizer(.int8(.tensor)).quantize(tensor.view)
    #expect(whole.codes.copyFloats() == [0, -1, 0, 0, 127, 64, 0, 0])
    #expect(whole.scales.values == [2])
    let channel = try Quantizer(.int8(.channel)).quantize(tensor.view)
    #expect(channel.scales.values == [2, 1])
    #expect(channel.codes.copyFloats() == [0, -2, 0, 0, 127, 127, 0, 0])
    let block = try Quantizer(.int8(.block(3))).quantize(tensor.view)
    #expect(block.scales.shape == [1, 1, 2])
  }

  @Test func progressiveCodesAreExactIntegers() throws {
    var random = TestRandom(seed: 2)
    let values = (0..<40 * 6).map { _ in random.normal() }
    let tensor = try Tensor(values, shape: [1, 1, 40, 6])
    let quantized = try Quantizer(.int4Progressive(tokens: 32, channels: 1)).quantize(tensor.view)
    #expect(quantized.codes.elementType == .int4)
    #expect(quantized.steps?.shape == [1, 1, 2, 6])
    #expect(
      quantized.steps?.values.allSatisfy { (1...17).contains($0) && $0.rounded() == $0 } == true
    )
    // The decoded values are whole multiples of the INT8 scale of their token.
    let restored = try quantized.dequantized().copyFloats()
    let definition = HeadCodes(
      HeadRows(count: 40, dimension: 6, values: values),
      .int4Progressive(tokens: 32, channels: 1)
    )
    #expect(restored == definition.dequantized().values)
  }

  @Test func zerosGiveZerosEverywhere() throws {
    let tensor = try Tensor(.float32, shape: [1, 1, 3, 4])
    for format in Self.formats {
      let quantized = try Quantizer(format, centers: true, rotates: true).quantize(tensor.view)
      #expect(try quantized.dequantized().copyFloats().allSatisfy { $0 == 0 }, "\(format)")
    }
  }

  @Test func partsThatDoNotFitAreRefused() throws {
    let tensor = try Tensor(.float32, shape: [1, 1, 3, 4])
    let quantizer = Quantizer(.int8(.token), centers: true)
    let whole = try quantizer.quantize(tensor.view)
    let wrong = try QuantizedTensor.Part([1, 2], shape: [1, 1, 2])
    for (scales, means) in [(wrong, whole.means), (whole.scales, nil), (whole.scales, wrong)] {
      let error = #expect(throws: AttentionError.self) {
        let codes = try Tensor(.int8, shape: [1, 1, 3, 4])
        let result = try QuantizedTensor(
          quantizer: quantizer,
          codes: codes,
          scales: scales,
          means: means
        )
        return result.byteCount
      }
      #expect(error?.code == .shapeMismatch)
    }
  }

  @Test func badTensorsAndFormatsAreRefused() throws {
    func failure(_ quantizer: Quantizer, _ tensor: borrowing Tensor) -> AttentionError.Code? {
      do throws(AttentionError) {
        _ = try quantizer.quantize(tensor.view).byteCount
      } catch { return error.code }
      return nil
    }
    let good = try Tensor(.float32, shape: [1, 2, 2])
    #expect(failure(Quantizer(.int8(.token)), good) == nil)
    #expect(failure(Quantizer(.float16), good) == .invalidArgument)
    #expect(failure(Quantizer(.int8(.block(0))), good) == .invalidArgument)
    #expect(failure(Quantizer(.int8(.block(.max))), good) == .invalidArgument)
    #expect(failure(Quantizer(.int8(.block(1 << 30))), good) == nil)
    #expect(failure(Quantizer(.int4Progressive(tokens: 0, channels: 1)), good) == .invalidArgument)
    #expect(
      failure(Quantizer(.int8(.token)), try Tensor(.int8, shape: [1, 2, 2]))
        == .unsupportedElementType
    )
    #expect(failure(Quantizer(.int8(.token)), try Tensor(.float32, shape: [2])) == .invalidArgument)
    #expect(
      failure(Quantizer(.int8(.token)), try Tensor(.float32, shape: [1, 1, 300]))
        == .invalidArgument
    )
    #expect(
      failure(Quantizer(.int8(.token)), try Tensor([.nan], shape: [1, 1, 1])) == .nonFiniteInput
    )
    #expect(
      failure(Quantizer(.int8(.token)), try Tensor([1e30], shape: [1, 1, 1])) == .valueOutOfRange
    )
  }
}
