import AttentionTestSupport
import IntFlashAttention
import IntFlashAttentionCUDA
import Testing

/// The GPU of the tests: a real one, or the simulator where LD_LIBRARY_PATH names it.
enum TestDevice {
  static let device: CUDADevice? = try? CUDADevice.all().first
  static var exists: Bool { device != nil }
  static var isSimulated: Bool { device?.name == "CUDA simulator" }

  /// The recipe of a precision as the GPU cuts it.
  static func recipe(_ precision: Precision, _ shape: AttentionShape) throws -> QuantizationRecipe {
    let device = try #require(device)
    let sizes = CUDATileSizes(
      shape: shape,
      method: try #require(CUDAMethod(precision.recipe)),
      major: device.major,
      multiprocessorCount: device.multiprocessorCount
    )
    return precision.recipe.cut(by: sizes)
  }
}

/// The CUDA backend against the definition of the same recipe, every row and element.
@Suite(.enabled(if: TestDevice.exists), .serialized)
struct CUDABackendTests {
  /// Every padded dimension; lengths around the tiles (32, 64, 128) and the block of queries (64,
  /// 128); more queries than keys and fewer.
  static let sizes: [CallSizes] = [
    CallSizes(heads: (1, 1), lengths: (1, 1), dimensions: (64, 64)),
    CallSizes(heads: (2, 1), lengths: (63, 129), dimensions: (64, 64)),
    CallSizes(heads: (2, 1), lengths: (131, 193), dimensions: (64, 64)),
    CallSizes(heads: (4, 2), lengths: (65, 65), dimensions: (96, 96)),
    CallSizes(heads: (1, 1), lengths: (129, 200), dimensions: (128, 128)),
    CallSizes(heads: (1, 1), lengths: (140, 70), dimensions: (128, 128)),
    CallSizes(heads: (1, 1), lengths: (66, 97), dimensions: (256, 256)),
    CallSizes(heads: (2, 1), lengths: (3, 101), dimensions: (13, 40)),
    CallSizes(heads: (1, 1), lengths: (70, 130), dimensions: (80, 33)),
  ]

  static let masks: [AttentionMask] = [
    .full, .causal, .sliding(left: 40, right: 0), .sliding(left: 3, right: 70),
  ]

  static let precisions: [Precision] = [.int8, .int8Paper, .bfloat16, .float16]

  @Test(arguments: sizes, precisions)
  func matchesReference(_ sizes: CallSizes, _ precision: Precision) throws {
    let shape = try sizes.shape
    let inputs = TestInputs(shape, .outlierChannel, seed: 7)
    let recipe = try TestDevice.recipe(precision, shape)
    for mask in Self.masks {
      let options = AttentionOptions(mask: mask)
      let result = try inputs.attend(precision.recipe, options, on: CUDABackend())
      let reference = try inputs.attend(recipe, options, on: ReferenceBackend())
      expectSame(result, reference, precision, inputs, "\(mask)")
    }
  }

  @Test(arguments: InputKind.allCases, precisions)
  func matchesReferenceOnEveryKindOfInput(_ kind: InputKind, _ precision: Precision) throws {
    let shape = try AttentionShape(
      batchCount: 2,
      queryHeadCount: 2,
      keyValueHeadCount: 1,
      queryLength: 71,
      keyValueLength: 203,
      headDimension: 64,
      valueDimension: 48
    )
    let inputs = TestInputs(shape, kind, seed: 11)
    let recipe = try TestDevice.recipe(precision, shape)
    for options in [
      AttentionOptions(mask: .causal), AttentionOptions(softmaxScale: -0.4, mask: .full),
    ] {
      let reference = try inputs.attend(recipe, options, on: ReferenceBackend())
      let result = try inputs.attend(precision.recipe, options, on: CUDABackend())
      expectSame(result, reference, precision, inputs, "\(options)")
    }
  }
}
