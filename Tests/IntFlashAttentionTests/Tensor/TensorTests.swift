import IntFlashAttention
import Testing

@Suite struct TensorTests {
  @Test(arguments: ElementType.allCases)
  func elementsComeBackInEveryType(_ type: ElementType) throws {
    let values: [Float] = [-8, -3, 0, 1, 2, 7, 5, -1, 3]
    let tensor = try Tensor(values, shape: [3, 3], elementType: type)
    #expect(tensor.copyFloats() == values)
    #expect(tensor.view[1, 2] == 7)
    #expect(try tensor.copy().copyFloats() == values)
    // A row of three 4-bit elements takes two bytes.
    #expect(tensor.byteCount == (type == .int4 ? 6 : 9 * type.bitWidth / 8))
  }

  @Test func permutedViewsReadTheSameElements() throws {
    let tensor = try Tensor((0..<24).map(Float.init), shape: [2, 3, 4])
    let view = try tensor.view.permuted([2, 0, 1])
    #expect(view.shape == [4, 2, 3])
    for i in 0..<2 {
      for j in 0..<3 {
        for k in 0..<4 { #expect(view[k, i, j] == tensor.view[i, j, k]) }
      }
    }
    #expect(view.copyFloats()[0..<6] == [0, 4, 8, 12, 16, 20])
    let error = #expect(throws: AttentionError.self) {
      let view = try tensor.view.permuted([0, 0, 1])
      return view.rank
    }
    #expect(error?.code == .invalidArgument)
  }

  @Test func negativeAndZeroStrides() throws {
    let values: [Float] = [0, 1, 2, 3, 4, 5]
    let reversed = try TensorView(values.span, shape: [3, 2], strides: [-2, 1], offset: 4)
    #expect(reversed.copyFloats() == [4, 5, 2, 3, 0, 1])
    let repeated = try TensorView(values.span, shape: [3, 2], strides: [0, 1])
    #expect(repeated.copyFloats() == [0, 1, 0, 1, 0, 1])
  }

  @Test(
    arguments: [
      ([3, 3], nil, 0), ([2, 3], [4, 1], 0), ([2, 3], [3, 1], 1), ([2, 3], [-3, 1], 0),
      ([2, 3], [3, 1], -1), ([-1, 3], nil, 0), ([2, 3], [3], 0), ([2, 2], [.max, 1], 0),
      ([.max, .max], nil, 0), ([2, 3], [3, 1], .max),
    ] as [([Int], [Int]?, Int)]
  )
  func refusesViewsBeyondTheirMemory(_ shape: [Int], _ strides: [Int]?, _ offset: Int) {
    let values: [Float] = [0, 1, 2, 3, 4, 5]
    let error = #expect(throws: AttentionError.self) {
      let view = try TensorView(values.span, shape: shape, strides: strides, offset: offset)
      return view.rank
    }
    #expect(error?.code == .invalidArgument)
  }

  /// Along one element, and where there are none, no stride is ever used.
  @Test func strideWithoutNeighboursMayBeAnything() throws {
    let values: [Float] = [0, 1, 2, 3, 4, 5]
    let one = try TensorView(values.span, shape: [1, 1, 2, 3], strides: [.max, .min, 3, 1])
    #expect(one.copyFloats() == values)
    #expect(one.byteRange != nil)
    #expect(try Quantizer(.int8(.token)).quantize(one).shape == [1, 1, 2, 3])
    let none = try TensorView(
      values.span,
      shape: [3, 2, 0, 3],
      strides: [.max, .max, .min, 1],
      offset: .max
    )
    #expect(none.copyFloats() == [])
    #expect(none.byteRange == nil)
    #expect(try Quantizer(.int8(.token)).quantize(none).shape == [3, 2, 0, 3])
    #expect(try attention(query: none, key: none, value: none).count == 0)
  }

  @Test func refusesShapesThatOverflowAndValuesThatDoNotFill() {
    for shape in [[Int.max, 2], [-1], [1 << 40, 1 << 40], [0, 1 << 62, 4], [1 << 62, 4, 0]] {
      let error = #expect(throws: AttentionError.self) {
        let tensor = try Tensor(.float32, shape: shape)
        return tensor.count
      }
      #expect(error?.code == .invalidArgument)
    }
    let error = #expect(throws: AttentionError.self) {
      let tensor = try Tensor([1, 2, 3], shape: [2, 2])
      return tensor.count
    }
    #expect(error?.code == .shapeMismatch)
    let memory = #expect(throws: AttentionError.self) {
      let tensor = try Tensor(.int8, shape: [1 << 56])
      return tensor.count
    }
    #expect(memory?.code == .outOfMemory)
  }

  @Test func scalarsAndEmptyTensors() throws {
    #expect(try Tensor([3], shape: []).copyFloats() == [3])
    #expect(try Tensor(.int4, shape: [0, 4]).copyFloats() == [])
    let nothing: [Float] = []
    #expect(try TensorView(nothing.span, shape: [2, 0]).count == 0)
  }
}
