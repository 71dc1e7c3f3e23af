import AttentionTestSupport
import Foundation
import IntFlashAttention
import IntFlashAttentionCUDA
import Testing

/// Tensors, streams and contexts that another library made, as PyTorch would.
@Suite(.enabled(if: TestDevice.exists), .serialized)
struct ForeignContextTests {
  /// The driver as another library calls it.
  private struct Driver {
    private typealias Function = @convention(c) (UInt, UInt, UInt) -> Int32

    func call(_ name: String, _ first: UInt = 0, _ second: UInt = 0, _ third: UInt = 0) throws {
      let library = unsafe try #require(unsafe dlopen("libcuda.so.1", RTLD_NOW))
      let symbol = unsafe try #require(unsafe dlsym(library, name))
      let function = unsafe unsafeBitCast(symbol, to: Function.self)
      #expect(function(first, second, third) == 0, "\(name)")
    }

    /// Calls a function that writes a handle or an address.
    func make(_ name: String, _ second: UInt = 0, _ third: UInt = 0) throws -> UInt {
      var result: UInt = 0
      try unsafe withUnsafeMutablePointer(to: &result) {
        try call(name, UInt(bitPattern: $0), second, third)
      }
      return result
    }

    /// Device memory with these elements.
    func memory(_ values: [Float]) throws -> UInt {
      let address = try make("cuMemAlloc_v2", UInt(4 * values.count))
      try unsafe values.withUnsafeBytes {
        try call("cuMemcpyHtoD_v2", address, UInt(bitPattern: $0.baseAddress), UInt($0.count))
      }
      return address
    }

    func values(_ address: UInt, count: Int) throws -> [Float] {
      var values = [Float](repeating: 0, count: count)
      try unsafe values.withUnsafeMutableBytes {
        try call("cuMemcpyDtoH_v2", UInt(bitPattern: $0.baseAddress), address, UInt($0.count))
      }
      return values
    }
  }

  private let driver = Driver()

  /// [batch, tokens, heads, dimension], which a call reads and writes by strides; its bits are those of
  /// an ordinary call, and it returns before anything has run.
  private func expectOrdinaryResult() throws {
    let shape = try AttentionShape(
      batchCount: 2,
      queryHeadCount: 4,
      keyValueHeadCount: 2,
      queryLength: 70,
      keyValueLength: 90,
      headDimension: 64
    )
    let inputs = TestInputs(shape, .outlierChannel)
    let expected = try inputs.attend(Precision.int8.recipe, on: CUDABackend())

    let device = try CUDADevice.current()
    let handle = try driver.make("cuStreamCreate", 1)
    let stream = unsafe try CUDAStream(unsafeHandle: handle, on: device)
    func strides(_ shape: [Int]) -> [Int] {
      [shape[1] * shape[2] * shape[3], shape[3], shape[1] * shape[3], 1]
    }
    func place(_ values: [Float], _ shape: [Int]) throws -> DeviceTensor {
      let swapped = try Self.swapped(values, shape)
      return unsafe try DeviceTensor(
        unsafeAddress: driver.memory(swapped),
        .float32,
        shape: shape,
        strides: strides(shape)
      )
    }
    let query = try place(inputs.query, shape.queryShape)
    let key = try place(inputs.key, shape.keyShape)
    let value = try place(inputs.value, shape.valueShape)
    let nothing = [Float](repeating: 7, count: expected.output.count)
    let output = try place(nothing, shape.outputShape)
    let descriptor = try AttentionDescriptor(
      shape: shape,
      recipe: Precision.int8.recipe,
      options: AttentionOptions()
    )
    let kernel = try CUDABackend(on: device).makeCUDAKernel(for: descriptor)
    try kernel.enqueue(query: query, key: key, value: value, into: output, on: stream)
    if TestDevice.isSimulated {
      // The simulator runs nothing before somebody waits.
      #expect(try driver.values(output.address, count: nothing.count) == nothing)
    }
    try driver.call("cuStreamSynchronize", handle)
    let found = try driver.values(output.address, count: nothing.count)
    let tokensFirst = [shape.outputShape[0], shape.outputShape[2], shape.outputShape[1], 64]
    #expect(try Self.swapped(found, tokensFirst) == expected.output)
    try kernel.check(on: stream)
  }

  private static func swapped(_ values: [Float], _ shape: [Int]) throws -> [Float] {
    let dense = try Tensor(values, shape: shape)
    let view = try dense.view.permuted([0, 2, 1, 3])
    return view.copyFloats()
  }

  @Test func primaryContext() throws {
    let primary = try driver.make("cuDevicePrimaryCtxRetain")
    try driver.call("cuCtxPushCurrent_v2", primary)
    defer { _ = try? driver.make("cuCtxPopCurrent_v2") }
    #expect(try CUDADevice.current() == CUDADevice.all()[0])
    try expectOrdinaryResult()
  }

  @Test func anotherContext() throws {
    let context = try driver.make("cuCtxCreate_v2")
    defer { _ = try? driver.make("cuCtxPopCurrent_v2") }
    #expect(context != 0)
    #expect(try CUDADevice.current() != CUDADevice.all()[0])
    #expect(try CUDADevice.current().ordinal == 0)
    try expectOrdinaryResult()
  }

  @Test func withoutAContextThereIsNoCurrentDevice() throws {
    let error = #expect(throws: AttentionError.self) { try CUDADevice.current() }
    #expect(error?.code == .unavailable)
    #expect(error?.message == "no CUDA context is current in this thread")
  }

  @Test func tensorsThatCannotBeAreRefused() throws {
    func code(_ address: UInt, _ type: ElementType, _ strides: [Int]) -> AttentionError.Code? {
      do throws(AttentionError) {
        _ = unsafe try DeviceTensor(
          unsafeAddress: address,
          type,
          shape: [1, 2, 3, 4],
          strides: strides
        )
        return nil
      } catch {
        return error.code
      }
    }
    #expect(code(256, .float32, [24, 12, 4, 1]) == nil)
    #expect(code(256, .float32, [24, 4, 8, 1]) == nil)
    #expect(code(258, .float32, [24, 12, 4, 1]) == .invalidArgument)
    #expect(code(.max - 7, .float32, [24, 12, 4, 1]) == .invalidArgument)
    #expect(code(1 << 62, .float32, [24, 1 << 60, 4, 1]) == .invalidArgument)
    #expect(code(256, .float32, [24, 12, .max, 1]) == .invalidArgument)
    #expect(code(258, .float16, [24, 12, 4, 1]) == nil)
    #expect(code(0, .float32, [24, 12, 4, 1]) == .invalidArgument)
    #expect(code(256, .float32, [24, 12, 4]) == .invalidArgument)
    #expect(code(256, .float32, [24, 12, 4, 2]) == .invalidArgument)
    #expect(code(256, .float32, [24, 12, -4, 1]) == .invalidArgument)
    #expect(code(256, .int8, [24, 12, 4, 1]) == .unsupportedElementType)
  }
}
